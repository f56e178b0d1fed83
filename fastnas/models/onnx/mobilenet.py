"""MobileNetV2's blocks, as they are deployed. Emitters as in layers.py."""

from fastnas.blueprint import blocks as b
from fastnas.models.onnx.graph import Graph
from fastnas.models.onnx.layers import conv_norm
from fastnas.models.onnx.weights import Weights

_LAST = 0.25  # gain of the projection of a block that adds its input: depth must not blow random values up


def emit_relu6_stem(graph: Graph, weights: Weights, name: str, spec: b.Relu6Stem, inputs: list[str], shapes: b.Shapes) -> list[str]:
    layers, shape = (f"{name}.conv1", f"{name}.norm1"), (spec.channels, 3, 3, 3)
    return [conv_norm(graph, weights, *layers, "bn", inputs[0], shape, stride=2, act="relu6")]


def emit_inverted_residual(
    graph: Graph, weights: Weights, name: str, spec: b.InvertedResidual, inputs: list[str], shapes: b.Shapes
) -> list[str]:
    width, value = spec.width, inputs[0]
    if spec.expansion != 1:
        shape = (width, spec.in_channels, 1, 1)
        value = conv_norm(graph, weights, f"{name}.conv1", f"{name}.norm1", "bn", value, shape, act="relu6")
    layers, shape = (f"{name}.conv2", f"{name}.norm2"), (width, 1, 3, 3)
    value = conv_norm(graph, weights, *layers, "bn", value, shape, stride=spec.stride, groups=width, act="relu6")
    layers, shape = (f"{name}.conv3", f"{name}.norm3"), (spec.out_channels, width, 1, 1)
    value = conv_norm(graph, weights, *layers, "bn", value, shape, gain=_LAST if spec.adds else 1.0)
    return [graph.add("Add", value, inputs[0]) if spec.adds else value]
