"""Blocks of MobileNetV2 and EfficientNet, as they are deployed: batch norm folded into the convolution before it.

Emitters as in layers.py.
"""

from fastnas.blueprint import blocks as b
from fastnas.models.onnx.graph import Graph
from fastnas.models.onnx.layers import activation, conv, conv_norm, pads
from fastnas.models.onnx.weights import EPS, TF_EPS, Weights

_ACTIVATIONS = {b.Relu6Stem: "relu6", b.InvertedResidual: "relu6", b.SiluStem: "silu", b.MobileBlock: "silu"}
_LAST = 0.25  # gain of the projection of a block that adds its input: depth must not blow random values up


def emit_stem(
    graph: Graph, weights: Weights, name: str, spec: b.Relu6Stem | b.SiluStem, inputs: list[str], shapes: b.Shapes
) -> list[str]:
    return [
        conv_norm(
            graph, weights, f"{name}.conv1", f"{name}.norm1", "bn", inputs[0], (spec.channels, 3, 3, 3),
            stride=2, act=_ACTIVATIONS[type(spec)], pads=pads(spec.padding, shapes[0], 3, 2), eps=_eps(spec.norm),
        )
    ]  # fmt: skip


def emit_inverted_bottleneck(
    graph: Graph, weights: Weights, name: str, spec: b.InvertedResidual | b.MobileBlock, inputs: list[str], shapes: b.Shapes
) -> list[str]:
    width, act, eps, value = spec.width, _ACTIVATIONS[type(spec)], _eps(spec.norm), inputs[0]
    if spec.expansion != 1:
        shape = (width, spec.in_channels, 1, 1)
        value = conv_norm(graph, weights, f"{name}.conv1", f"{name}.norm1", "bn", value, shape, act=act, eps=eps)
    around = pads(spec.padding if spec.stride == 2 else "symmetric", shapes[0], spec.kernel, spec.stride)
    value = conv_norm(
        graph, weights, f"{name}.conv2", f"{name}.norm2", "bn", value, (width, 1, spec.kernel, spec.kernel),
        stride=spec.stride, groups=width, act=act, pads=around, eps=eps,
    )  # fmt: skip
    if spec.squeezed:
        scale = graph.add("GlobalAveragePool", value)
        scale = activation(graph, conv(graph, weights, f"{name}.squeeze", scale, (spec.squeezed, width, 1, 1)), "silu")
        scale = graph.add("Sigmoid", conv(graph, weights, f"{name}.excite", scale, (width, spec.squeezed, 1, 1)))
        value = graph.add("Mul", value, scale)
    shape, gain = (spec.out_channels, width, 1, 1), _LAST if spec.adds else 1.0
    value = conv_norm(graph, weights, f"{name}.conv3", f"{name}.norm3", "bn", value, shape, eps=eps, gain=gain)
    return [graph.add("Add", value, inputs[0]) if spec.adds else value]


def _eps(norm: str) -> float:
    return TF_EPS if norm == "tf" else EPS
