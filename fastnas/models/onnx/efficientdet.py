"""EfficientDet's neck and head, as they are deployed: batch norm folded into the convolution before it, shares of a fusion fixed.

Emitters as in layers.py.
"""

import numpy as np

from fastnas.blueprint import blocks as b
from fastnas.models.onnx.graph import Graph
from fastnas.models.onnx.layers import activation, conv, conv_norm, pads, upsample
from fastnas.models.onnx.weights import TF_EPS, Weights

FUSION_EPS = 1e-4


def emit_coarser_level(
    graph: Graph, weights: Weights, name: str, spec: b.CoarserLevel, inputs: list[str], shapes: b.Shapes
) -> list[str]:
    value = inputs[0]
    if spec.projects:
        value = _project(graph, weights, f"{name}.edge", value, spec.in_channels, spec)
    return [_pool(graph, value, shapes[0], spec.padding)]


def emit_fusion_node(
    graph: Graph, weights: Weights, name: str, spec: b.FusionNode, inputs: list[str], shapes: b.Shapes
) -> list[str]:
    shares = _shares(spec, weights, name)
    total = None
    for index, (value, shape) in enumerate(zip(inputs, shapes, strict=True)):
        if index in spec.projected:
            value = _project(graph, weights, f"{name}.edge{index}", value, spec.in_channels[index], spec)
        value = _resize(graph, value, (1, spec.channels, *shape[2:]), shapes[0], spec.padding)
        if shares is not None:
            value = graph.add("Mul", value, graph.constant(shares[index]))
        total = value if total is None else graph.add("Add", total, value)
    value, channels = activation(graph, total, "silu"), spec.channels
    value = conv(graph, weights, f"{name}.depthwise", value, (channels, 1, 3, 3), groups=channels, bias=False)
    layers, shape = (f"{name}.conv", f"{name}.norm"), (channels, channels, 1, 1)
    return [conv_norm(graph, weights, *layers, "bn", value, shape, eps=TF_EPS, bias=spec.bias == "yes", gain=0.7)]


def emit_head_tower(
    graph: Graph, weights: Weights, name: str, spec: b.HeadTower, inputs: list[str], shapes: b.Shapes, use: int = 0
) -> list[str]:
    """The weights of the pointwise convolutions are stored once a level, for each has the level's batch norm folded in."""
    value = inputs[0]
    *repeated, (last, out) = spec.layers()
    for index, (cin, cout) in enumerate(repeated):
        value = conv(graph, weights, f"{name}.depthwise.{index}", value, (cin, 1, 3, 3), groups=cin, bias=False)
        layers, shape = (f"{name}.pointwise.{index}", f"{name}.norms.{index}.{use}"), (cout, cin, 1, 1)
        value = conv_norm(graph, weights, *layers, "bn", value, shape, act="silu", eps=TF_EPS, bias=spec.bias == "yes")
    value = conv(graph, weights, f"{name}.depthwise.{len(repeated)}", value, (last, 1, 3, 3), groups=last, bias=False)
    return [conv(graph, weights, f"{name}.pointwise.{len(repeated)}", value, (out, last, 1, 1), gain=0.5)]


def _project(graph: Graph, weights: Weights, edge: str, value: str, cin: int, spec: b.CoarserLevel | b.FusionNode) -> str:
    layers, shape = (f"{edge}.conv", f"{edge}.norm"), (spec.channels, cin, 1, 1)
    return conv_norm(graph, weights, *layers, "bn", value, shape, eps=TF_EPS, bias=spec.bias == "yes", gain=0.7)


def _resize(graph: Graph, value: str, shape: b.Shape, target: b.Shape, padding: str) -> str:
    """A map of `shape` in the size of `target`: pooled where it is larger, repeated where it is smaller."""
    if shape[2:] == target[2:]:
        return value
    if shape[2] > target[2] or shape[3] > target[3]:
        return _pool(graph, value, shape, padding)
    return upsample(graph, value, shape, target)


def _pool(graph: Graph, value: str, shape: b.Shape, padding: str) -> str:
    return graph.add("MaxPool", value, kernel_shape=[3, 3], strides=[2, 2], pads=pads(padding, shape, 3, 2))


def _shares(spec: b.FusionNode, weights: Weights, name: str) -> np.ndarray | None:
    """What each input is multiplied with; None: nothing."""
    if spec.method == "sum":
        return None
    values = weights.vector(f"{name}.weights", spec.weights).astype(np.float64)
    shares = np.maximum(values, 0) if spec.method == "fast" else np.exp(values - values.max())
    return shares / (shares.sum() + (FUSION_EPS if spec.method == "fast" else 0))
