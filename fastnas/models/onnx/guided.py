"""Guided anchoring (`fastnas.blueprint.parts.guided`) as ONNX. Emitters as in layers.py and boxes.py."""

import math

from fastnas.blueprint import blocks as b
from fastnas.models.anchors import level_anchors
from fastnas.models.onnx.boxes import NEVER, join, pick_deltas, select, split, topk
from fastnas.models.onnx.graph import Graph
from fastnas.models.onnx.layers import conv, window
from fastnas.models.onnx.weights import Weights

DEFORM_OPSET = 19  # the first that has DeformConv, which ONNX Runtime runs on the CPU
_MAX_LOG_SIDE = -math.log(1e-6)  # of guided anchors, either way


def emit_guided_head(
    graph: Graph, weights: Weights, name: str, spec: b.GuidedHead, inputs: list[str], shapes: b.Shapes
) -> list[str]:
    graph.need(DEFORM_OPSET)
    channels = spec.channels
    value = graph.add("Relu", conv(graph, weights, f"{name}.conv", inputs[0], (channels, channels, 3, 3)))
    location = conv(graph, weights, f"{name}.location", value, (1, channels, 1, 1))
    shape = conv(graph, weights, f"{name}.shape", value, (2, channels, 1, 1), gain=0.5)
    offset = conv(graph, weights, f"{name}.offset", shape, (spec.offsets, 2, 1, 1), bias=False)
    layer, kernel = f"{name}.adaption", (channels, channels, 3, 3)
    weight = graph.stored(f"{layer}.weight") or graph.store(f"{layer}.weight", weights.dense(layer, kernel), channels)
    value = graph.add("DeformConv", value, weight, offset, **window(3, 1), offset_group=spec.offsets // 18)
    value = graph.add("Relu", value)
    return [
        location,
        shape,
        conv(graph, weights, f"{name}.cls_logits", value, (1, channels, 1, 1)),
        conv(graph, weights, f"{name}.bbox_pred", value, (4, channels, 1, 1), gain=0.1),
    ]


def emit_guided_proposals(
    graph: Graph, weights: Weights, name: str, spec: b.GuidedProposals, inputs: list[str], shapes: b.Shapes
) -> list[str]:
    levels = len(spec.strides)
    likely = graph.constant([math.log(spec.location / (1 - spec.location))])
    scores, deltas, anchors, owner = [], [], [], []
    for level in range(levels):
        location, shape, score, delta = inputs[level::levels]
        _, _, height, width = shapes[level]
        cells = height * width
        location, score = (graph.add("Reshape", value, graph.integers(-1)) for value in (location, score))
        score = graph.add("Where", graph.add("GreaterOrEqual", location, likely), score, graph.constant([NEVER]))
        best, index = graph.add("TopK", score, graph.integers(min(topk(graph, spec.topk), cells)), outputs=2, axis=0)
        squares = level_anchors(spec.input, (height, width), spec.strides[level], spec.scale, spec.ratios)
        squares = graph.add("Gather", graph.store(f"{name}.squares{level}", squares), index, axis=0)
        places = graph.add("Add", graph.add("Unsqueeze", index, graph.integers(1)), graph.integers(0, cells))
        shape = graph.add("Gather", graph.add("Reshape", shape, graph.integers(-1)), places, axis=0)
        scores.append(best)
        deltas.append(pick_deltas(graph, delta, index, cells))
        anchors.append(_guided(graph, spec, squares, shape))
        owner += [level] * min(topk(graph, spec.topk), cells)
    return [select(graph, name, spec, join(graph, anchors), join(graph, deltas), join(graph, scores), owner)]


def _guided(graph: Graph, spec: b.GuidedProposals, squares: str, shape: str) -> str:
    """Anchors (K, 4) with the centres of squares (K, 4) and the sides that shape (K, 2) says."""
    top_left, bottom_right = split(graph, squares, 2)
    reach = graph.add("Mul", graph.add("Sub", bottom_right, top_left), graph.constant([0.5]))
    center = graph.add("Add", top_left, reach)
    logarithm = graph.add("Mul", shape, graph.constant([spec.deviation]))
    logarithm = graph.add("Clip", logarithm, graph.constant(-_MAX_LOG_SIDE), graph.constant(_MAX_LOG_SIDE))
    reach = graph.add("Mul", reach, graph.add("Exp", logarithm))
    return graph.add("Concat", graph.add("Sub", center, reach), graph.add("Add", center, reach), axis=1)
