"""Single layers (`fastnas.blueprint.operators`) as ONNX, emitters as in layers.py."""

from fastnas.blueprint import blocks as b
from fastnas.blueprint import operators as o
from fastnas.models.onnx.graph import Graph
from fastnas.models.onnx.layers import activation, group_norm, linear, upsample, weight_and_bias, window
from fastnas.models.onnx.weights import Weights


def emit_conv(graph: Graph, weights: Weights, name: str, spec: o.Conv, inputs: list[str], shapes: b.Shapes) -> list[str]:
    shape = (spec.out_channels, spec.in_channels // spec.groups, spec.kernel, spec.kernel)
    parameters = weight_and_bias(graph, weights, f"{name}.conv", shape, gain=1.0)
    value = graph.add("Conv", inputs[0], *parameters, **window(spec.kernel, spec.stride), group=spec.groups)
    for added in inputs[1:]:
        value = graph.add("Add", value, added)
    return [_activated(graph, value, spec.activation)]


def emit_linear(graph: Graph, weights: Weights, name: str, spec: o.Linear, inputs: list[str], shapes: b.Shapes) -> list[str]:
    value = graph.add("Flatten", inputs[0]) if len(shapes[0]) > 2 else inputs[0]
    value = linear(graph, weights, f"{name}.linear", value, (spec.out_features, spec.in_features))
    return [_activated(graph, value, spec.activation)]


def emit_pass(graph: Graph, weights: Weights, name: str, spec: o.Pass, inputs: list[str], shapes: b.Shapes) -> list[str]:
    first, *others = inputs
    if spec.kind == "max-pool":
        around = [spec.kernel // 2] * 4
        return [graph.add("MaxPool", first, kernel_shape=[spec.kernel] * 2, strides=[2, 2], pads=around)]
    if spec.kind == "mean":
        return [graph.add("GlobalAveragePool", first)]
    if spec.kind == "scale":
        return [graph.add("Mul", first, others[0])]
    if spec.kind == "upsample":
        return [upsample(graph, first, shapes[0], spec.output)]
    if spec.kind == "group-norm":
        value = group_norm(graph, weights, f"{name}.norm", first, spec.output[1], b.norm_groups("gn", spec.output[1]))
    else:  # fuse: every map has its share
        first, *others = (graph.add("Mul", value, graph.constant(1 / len(inputs))) for value in inputs)
        value = first
    for other in others:
        value = graph.add("Add", value, other)
    return [_activated(graph, value, spec.activation)]


def _activated(graph: Graph, value: str, kind: str) -> str:
    return graph.add("Sigmoid", value) if kind == "sigmoid" else activation(graph, value, kind)
