"""Final suppression of one-stage detectors, with static outputs; numbers as in `fastnas.models.one_stage`, forms as in boxes.py."""

from collections.abc import Sequence

import numpy as np

from fastnas.blueprint import blocks as b
from fastnas.models.anchors import head_anchors
from fastnas.models.onnx.boxes import (
    INT64,
    NEVER,
    SMALLEST_DETECTION,
    decode,
    join,
    large_enough,
    require_hard,
    suppress,
    take_best,
    topk,
    with_zero_row,
)
from fastnas.models.onnx.graph import Graph
from fastnas.models.onnx.weights import Weights


def emit_anchor_detections(
    graph: Graph, weights: Weights, name: str, spec: b.AnchorHead, inputs: list[str], shapes: b.Shapes
) -> list[str]:
    require_hard(spec)
    levels = range(len(inputs) // 2)
    groups = [[level] for level in levels] if spec.each_level else [levels]
    found = [_best_pairs(graph, name, spec, inputs, shapes, group) for group in groups]
    logit, label, decoded = (join(graph, list(parts)) for parts in list(zip(*found, strict=True))[:3])
    pairs = sum(count for *_, count in found)
    score = graph.add("Sigmoid", logit)
    for usable in (large_enough(graph, decoded, SMALLEST_DETECTION), graph.add("Greater", score, graph.constant(spec.score))):
        score = graph.add("Where", usable, score, graph.constant([NEVER]))
    classes = shapes[0][1] // spec.anchors - spec.background
    mine = graph.add("Equal", graph.constant(np.arange(1, classes + 1).reshape(1, -1, 1), np.int64), label)
    by_class = graph.add("Where", mine, score, graph.constant([NEVER]))
    selected = suppress(graph, decoded, by_class, spec.detections, spec.nms)
    kept, score = take_best(graph, selected, score, pairs, spec.detections)  # row `pairs` is the zero box
    return [
        graph.add("Gather", with_zero_row(graph, decoded), kept, axis=0),
        graph.add("Max", score, graph.constant([0])),
        graph.add("Gather", join(graph, [label, graph.integers(0)]), kept, axis=0),
    ]


def _best_pairs(
    graph: Graph, name: str, spec: b.AnchorHead, inputs: list[str], shapes: b.Shapes, group: Sequence[int]
) -> tuple[str, str, str, int]:
    """Logits (K,), labels from 1 (K,) and boxes (K, 4) of the best (anchor, class) pairs of these levels, and K.

    They are among the anchors with the best maxima: one pass over all logits, sorting only what is left.
    All indices are those of the raw maps, level by level: anchor a at cell p of a level whose anchors start at s has index
    s + a cells + p, and its class or code c lies at (s + a cells) columns + c cells + p, in maps of `columns` channels an anchor.
    """
    levels = len(inputs) // 2
    columns = shapes[0][1] // spec.anchors
    classes = columns - spec.background
    flat, maxima, anchors, starts, cells = [], [], [], [], []
    for level, boxes in zip(group, head_anchors(spec, [shape[2:] for shape in shapes[:levels]])[group[0] :], strict=False):
        size = shapes[level][2] * shapes[level][3]
        grouped = graph.add("Reshape", inputs[level], graph.integers(spec.anchors, columns, size))
        if spec.background:
            grouped = graph.add("Slice", grouped, *map(graph.integers, (spec.background, columns, 1)))
        maxima.append(graph.add("Reshape", graph.add("ReduceMax", grouped, axes=[1], keepdims=0), graph.integers(-1)))
        flat.append(graph.add("Reshape", inputs[level], graph.integers(-1)))
        anchors.append(boxes.reshape(-1, spec.anchors, 4).transpose(1, 0, 2).reshape(-1, 4))
        first = sum(map(len, anchors[:-1]))
        starts += [first + anchor * size for anchor in range(spec.anchors)]
        cells += [size] * spec.anchors
    kept = min(topk(graph, spec.topk), sum(map(len, anchors)))
    _, index = graph.add("TopK", join(graph, maxima), graph.integers(kept), outputs=2, axis=0)
    logits = _Places(graph, index, starts, cells).of(columns, range(spec.background, columns))
    logits = graph.add("Gather", join(graph, flat), logits, axis=0)
    pairs = min(topk(graph, spec.topk), kept * classes)
    logit, pair = graph.add("TopK", graph.add("Reshape", logits, graph.integers(-1)), graph.integers(pairs), outputs=2, axis=0)
    row = graph.add("Div", pair, graph.integers(classes))
    label = graph.add("Add", graph.add("Sub", pair, graph.add("Mul", row, graph.integers(classes))), graph.integers(1))
    index = graph.add("Gather", index, row, axis=0)
    codes = join(graph, [graph.add("Reshape", inputs[levels + level], graph.integers(-1)) for level in group])
    codes = graph.add("Gather", codes, _Places(graph, index, starts, cells).of(4, spec.codes), axis=0)
    reference = graph.add("Gather", graph.store(f"{name}.anchors{group[0]}", np.concatenate(anchors)), index, axis=0)
    return logit, label, decode(graph, reference, codes, (1.0, 1.0), spec.input), pairs


class _Places:
    """Where the values of anchors `index` (K,) lie in flattened raw maps; see `_best_pairs`."""

    def __init__(self, graph: Graph, index: str, starts: list[int], cells: list[int]):
        self._graph = graph
        column = graph.add("Unsqueeze", index, graph.integers(1))
        reached = graph.add("GreaterOrEqual", column, graph.constant([starts[1:]], np.int64))
        owner = graph.add("ReduceSum", graph.add("Cast", reached, to=INT64), graph.integers(1))
        self._start = graph.add("Gather", graph.integers(*starts), owner, axis=0)
        self._cells = graph.add("Gather", graph.integers(*cells), owner, axis=0)
        self._cell = graph.add("Sub", column, self._start)

    def of(self, columns: int, wanted) -> str:
        """Places (K, len(wanted)) of these columns, in maps that have `columns` for an anchor."""
        first = self._graph.add("Add", self._graph.add("Mul", self._start, self._graph.integers(columns)), self._cell)
        return self._graph.add("Add", first, self._graph.add("Mul", self._cells, self._graph.constant([list(wanted)], np.int64)))
