"""Blocks that work on boxes: proposal selection, multi-level RoIAlign and the final suppression, all with static outputs.

Numbers as in torchvision's RegionProposalNetwork, MultiScaleRoIAlign and RoIHeads (Ren et al. 2015; Lin et al. 2017).
Outputs that hold fewer rows than promised are filled up with zero boxes (score 0, label 0).

In a static graph (see `Graph`) no NonZero picks rows, so that sizes are known before the data is:
- All levels lie one under the other in a single map from which one RoiAlign pools. Below and beside each level its edge is
  repeated, which is what RoiAlign reads there of a level alone (except for boxes narrower than a cell that stick out).
- Final suppression decodes the CANDIDATES best (region, class) pairs, not all of those over the score threshold.
- Nothing sorts more than LARGEST_TOPK.
"""

import math

import numpy as np

from fastnas.blueprint import blocks as b
from fastnas.errors import InputError
from fastnas.models.anchors import level_anchors
from fastnas.models.onnx.graph import Graph
from fastnas.models.onnx.weights import Weights

MAX_LOG_SIDE = math.log(1000 / 16)  # deltas of width and height are clamped here before the exponential
SMALLEST_PROPOSAL = 1e-3  # pixels; narrower boxes are dropped
SMALLEST_DETECTION = 1e-2
CANDIDATES = 2000  # pairs in a static graph
LARGEST_TOPK = 3840  # TensorRT's TopK gives no more
NEVER = -10000.0  # a score lower than any, also in half precision
INT64 = 7  # onnx.TensorProto.INT64
_EDGE = 2  # rows and columns: samples of a box narrower than a cell lie up to 3/4 of a cell outside, and two are read
_CANONICAL_LEVEL, _CANONICAL_SIDE, _LEVEL_EPS = 4, 224, 1e-6


def emit_proposals(
    graph: Graph, weights: Weights, name: str, spec: b.Proposals, inputs: list[str], shapes: b.Shapes
) -> list[str]:
    """Best `topk` anchors of each level, decoded together; one suppression in which every level is a class of its own."""
    levels = len(inputs) // 2
    scores, deltas, anchors, owner = [], [], [], []
    for level in range(levels):
        _, count, height, width = shapes[level]
        kept = min(topk(graph, spec.topk), count * height * width)
        flat = graph.add("Reshape", inputs[level], graph.integers(-1))
        best, index = graph.add("TopK", flat, graph.integers(kept), outputs=2, axis=0)
        scores.append(best)  # logits: the sigmoid changes no order
        deltas.append(pick_deltas(graph, inputs[levels + level], index, height * width))
        boxes = level_anchors(spec.input, (height, width), spec.strides[level], spec.scale, spec.ratios, sizes=spec.sizes)
        boxes = boxes.reshape(-1, count, 4).transpose(1, 0, 2).reshape(-1, 4)  # the order of the raw map: anchor, row, column
        anchors.append(graph.add("Gather", graph.store(f"{name}.anchors{level}", boxes), index, axis=0))
        owner += [level] * kept
    return [select(graph, name, spec, join(graph, anchors), join(graph, deltas), join(graph, scores), owner)]


def select(graph: Graph, name: str, spec: b.Proposer, anchors: str, deltas: str, score: str, owner: list[int]) -> str:
    """Proposals from the best of all levels: anchors (K, 4), deltas (K, 4), score (K,), whose level is `owner`."""
    total = len(owner)
    boxes = decode(graph, anchors, deltas, spec.weights, spec.input)
    score = graph.add("Where", large_enough(graph, boxes, SMALLEST_PROPOSAL), score, graph.constant([NEVER]))
    levels = len(spec.strides)
    mine = graph.store(f"{name}.owner", np.arange(levels).reshape(1, levels, 1) == np.array(owner).reshape(1, 1, total))
    by_level = graph.add("Where", mine, score, graph.constant([NEVER]))
    selected = suppress(graph, boxes, by_level, spec.proposals, spec.nms)
    kept, _ = take_best(graph, selected, score, total, spec.proposals)
    return graph.add("Gather", with_zero_row(graph, boxes), kept, axis=0)


def emit_roi_pool(
    graph: Graph, weights: Weights, name: str, spec: b.RoiPool, inputs: list[str], shapes: b.Shapes
) -> list[str]:
    """Each region is pooled from one level only: floor(4 + log2(sqrt(area) / 224)), clamped to the levels."""
    *maps, boxes = inputs
    regions = shapes[-1][0]
    batch = graph.constant(np.zeros(regions), np.int64)
    if len(maps) == 1:
        return [_roi_align(graph, spec, maps[0], boxes, batch, spec.strides[0])]
    lowest = round(math.log2(spec.strides[0]))
    x1, y1, x2, y2 = split(graph, boxes, 4)
    area = graph.add("Mul", graph.add("Sub", x2, x1), graph.add("Sub", y2, y1))
    sides = [_CANONICAL_SIDE * 2 ** (lowest + index - _CANONICAL_LEVEL - _LEVEL_EPS) for index in range(1, len(maps))]
    # as a comparison of areas: the levels whose smallest area this region reaches
    reached = graph.add("GreaterOrEqual", area, graph.constant([[side**2 for side in sides]]))
    level = graph.add("ReduceSum", graph.add("Cast", reached, to=INT64), graph.integers(1), keepdims=0)
    if graph.static:
        return [_pool_stacked(graph, spec, maps, shapes, boxes, level, batch)]
    order, pooled = [], []
    for index, value in enumerate(maps):
        mine = graph.add("NonZero", graph.add("Equal", level, graph.integers(index)))
        mine = graph.add("Squeeze", mine, graph.integers(0))
        rows = graph.add("Gather", boxes, mine, axis=0)
        order.append(mine)
        pooled.append(_roi_align(graph, spec, value, rows, graph.add("Gather", batch, mine, axis=0), spec.strides[index]))
    place = graph.add(
        "ScatterElements", graph.constant(np.zeros(regions), np.int64), join(graph, order), graph.integers(*range(regions)), axis=0
    )
    return [graph.add("Gather", join(graph, pooled), place, axis=0)]


def emit_detections(
    graph: Graph, weights: Weights, name: str, spec: b.Detections, inputs: list[str], shapes: b.Shapes
) -> list[str]:
    """Only the (region, class) pairs over the score threshold are decoded; one suppression with the classes of the data."""
    require_hard(spec)
    boxes, *logits, deltas = inputs
    regions, columns = shapes[1]
    scores = _mean(graph, [graph.add("Softmax", stage, axis=1) for stage in logits])
    scores = graph.add("Slice", scores, graph.integers(1), graph.integers(columns), graph.integers(1))  # background is column 0
    flat = graph.add("Reshape", scores, graph.integers(-1))
    count = min(CANDIDATES, regions * (columns - 1))
    if graph.static:
        best, passing = graph.add("TopK", flat, graph.integers(count), outputs=2, axis=0)
        score = graph.add("Where", graph.add("Greater", best, graph.constant(spec.score)), best, graph.constant([NEVER]))
    else:
        passing = graph.add("NonZero", graph.add("Greater", flat, graph.constant(spec.score)))
        passing = graph.add("Squeeze", passing, graph.integers(0))
        score = graph.add("Gather", flat, passing, axis=0)
    classes = graph.integers(columns - 1)
    region = graph.add("Div", passing, classes)
    label = graph.add("Add", graph.add("Sub", passing, graph.add("Mul", region, classes)), graph.integers(1))
    row = region
    codes = shapes[-1][1] // 4
    if codes != 1:  # one a class, with or without the background's
        own = graph.add("Sub", label, graph.integers(columns - codes))
        row = graph.add("Add", graph.add("Mul", region, graph.integers(codes)), own)
        deltas = graph.add("Reshape", deltas, graph.integers(regions * codes, 4))
    delta = graph.add("Gather", deltas, row, axis=0)
    decoded = decode(graph, graph.add("Gather", boxes, region, axis=0), delta, spec.weights, spec.input)
    score = graph.add("Where", large_enough(graph, decoded, SMALLEST_DETECTION), score, graph.constant([NEVER]))
    mine = graph.add("Equal", graph.constant(np.arange(1, columns).reshape(1, -1, 1), np.int64), label)
    by_class = graph.add("Where", mine, score, graph.constant([NEVER]))
    selected = suppress(graph, decoded, by_class, spec.detections, spec.nms)
    padding = count if graph.static else graph.add("Shape", passing)  # the row after the last pair is the zero box
    kept, best = take_best(graph, selected, score, padding, spec.detections)
    return [
        graph.add("Gather", with_zero_row(graph, decoded), kept, axis=0),
        graph.add("Max", best, graph.constant([0])),
        graph.add("Gather", join(graph, [label, graph.integers(0)]), kept, axis=0),
    ]


def emit_refine(graph: Graph, weights: Weights, name: str, spec: b.Refine, inputs: list[str], shapes: b.Shapes) -> list[str]:
    return [decode(graph, *inputs, spec.weights, spec.input)]


def require_hard(spec: b.Detections | b.AnchorHead) -> None:
    """No ONNX operator lowers scores step by step, and a Loop of its own would be timed, not Soft-NMS."""
    if spec.suppression != "hard":
        raise InputError(
            f"Soft-NMS cannot be written as ONNX: the head's suppression={spec.suppression} runs in torch only "
            "(take suppression=hard, or an engine of torch)"
        )


def _mean(graph: Graph, values: list[str]) -> str:
    total = values[0]
    for value in values[1:]:
        total = graph.add("Add", total, value)
    return graph.add("Mul", total, graph.constant([1 / len(values)])) if len(values) > 1 else total


def pick_deltas(graph: Graph, deltas: str, index: str, cells: int) -> str:
    """Deltas (K, 4) of anchors `index` (K,) in a raw map (1, 4A, H, W) whose channels are anchor-major.

    Anchor a at cell p has index a * cells + p and its delta c lies at (4a + c) * cells + p: no transpose of the map is needed.
    """
    flat = graph.add("Reshape", deltas, graph.integers(-1))
    anchor = graph.add("Div", index, graph.integers(cells))
    start = graph.add("Add", index, graph.add("Mul", anchor, graph.integers(3 * cells)))
    start = graph.add("Unsqueeze", start, graph.integers(1))
    return graph.add("Gather", flat, graph.add("Add", start, graph.integers(0, cells, 2 * cells, 3 * cells)), axis=0)


def decode(graph: Graph, anchors: str, deltas: str, weights: b.Weights, size: tuple[int, int]) -> str:
    """Boxes (K, 4) inside an image of `size` (height, width) from anchors (K, 4) and deltas (K, 4): torchvision's BoxCoder."""
    top_left, bottom_right = split(graph, anchors, 2)
    sides = graph.add("Sub", bottom_right, top_left)
    centre = graph.add("Add", top_left, graph.add("Mul", sides, graph.constant([0.5])))
    if weights != (1.0, 1.0):
        deltas = graph.add("Div", deltas, graph.constant(np.repeat(weights, 2)))
    shift, log_scale = split(graph, deltas, 2)
    centre = graph.add("Add", graph.add("Mul", shift, sides), centre)
    scale = graph.add("Exp", graph.add("Min", log_scale, graph.constant([MAX_LOG_SIDE])))
    reach = graph.add("Mul", graph.add("Mul", scale, sides), graph.constant([0.5]))
    boxes = graph.add("Concat", graph.add("Sub", centre, reach), graph.add("Add", centre, reach), axis=1)
    height, width = size
    boxes = graph.add("Min", boxes, graph.constant([width, height, width, height]))
    return graph.add("Max", boxes, graph.constant([0]))


def split(graph: Graph, boxes: str, parts: int) -> tuple[str, ...]:
    """Columns of boxes (K, 4) in 2 or 4 equal parts. With their sizes said: ONNX Runtime 1.31 takes two Splits of one value for the
    same node, and gives one the outputs of the other, where only the number of the outputs tells them apart."""
    return graph.add("Split", boxes, graph.integers(*[4 // parts] * parts), outputs=parts, axis=1)


def large_enough(graph: Graph, boxes: str, smallest: float) -> str:
    """Which of the boxes (K, 4) are at least `smallest` pixels wide and high: bool (K,)."""
    top_left, bottom_right = split(graph, boxes, 2)
    side = graph.add("ReduceMin", graph.add("Sub", bottom_right, top_left), axes=[1], keepdims=0)
    return graph.add("GreaterOrEqual", side, graph.constant(smallest))


def suppress(graph: Graph, boxes: str, scores: str, most: int, iou: float) -> str:
    """Rows of `boxes` (K, 4) that survive class-wise suppression; scores are (1, classes, K), NEVER where not of the class."""
    boxes = graph.add("Unsqueeze", boxes, graph.integers(0))
    limits = graph.integers(most), graph.constant([iou]), graph.constant([NEVER / 2])
    triples = graph.add("NonMaxSuppression", boxes, scores, *limits)
    return graph.add("Gather", triples, graph.constant(2, np.int64), axis=1)


def take_best(graph: Graph, rows: str, scores: str, padding: str | int, count: int) -> tuple[str, str]:
    """The `count` best of `rows` and their scores, best first; where there are fewer, row `padding` with score NEVER."""
    filler = graph.integers(*[padding] * count) if isinstance(padding, int) else graph.add("Expand", padding, graph.integers(count))
    score = join(graph, [graph.add("Gather", scores, rows, axis=0), graph.constant([NEVER] * count)])
    best, place = graph.add("TopK", score, graph.integers(count), outputs=2, axis=0)
    return graph.add("Gather", join(graph, [rows, filler]), place, axis=0), best


def with_zero_row(graph: Graph, boxes: str) -> str:
    return join(graph, [boxes, graph.constant([[0, 0, 0, 0]])])


def join(graph: Graph, values: list[str]) -> str:
    return graph.add("Concat", *values, axis=0) if len(values) > 1 else values[0]


def topk(graph: Graph, count: int) -> int:
    return min(count, LARGEST_TOPK) if graph.static else count


def _pool_stacked(
    graph: Graph, spec: b.RoiPool, maps: list[str], shapes: b.Shapes, boxes: str, level: str, batch: str
) -> str:
    """RoiAlign of boxes (R, 4), each on its `level` (R,), from all levels stacked into one map."""
    widest, tops, stack, rows = max(shape[3] for shape in shapes[:-1]), [], [], 0
    for value, (_, _, height, width) in zip(maps, shapes[:-1], strict=True):
        value = graph.add("Pad", value, graph.integers(0, 0, 0, 0, 0, 0, _EDGE, _EDGE), mode="edge")
        if width < widest:
            value = graph.add("Pad", value, graph.integers(0, 0, 0, 0, 0, 0, 0, widest - width), mode="constant")
        stack.append(value)
        tops.append(rows)
        rows += height + _EDGE
    scales = graph.constant([[1 / stride] for stride in spec.strides])
    scaled = graph.add("Mul", boxes, graph.add("Gather", scales, level, axis=0))
    moved = graph.add("Add", scaled, graph.add("Gather", graph.constant([[0, top, 0, top] for top in tops]), level, axis=0))
    return _roi_align(graph, spec, graph.add("Concat", *stack, axis=2), moved, batch, 1)


def _roi_align(graph: Graph, spec: b.RoiPool, value: str, boxes: str, batch: str, stride: int) -> str:
    return graph.add(
        "RoiAlign", value, boxes, batch, coordinate_transformation_mode="output_half_pixel", mode="avg",
        output_height=spec.resolution, output_width=spec.resolution, sampling_ratio=spec.sampling, spatial_scale=1 / stride,
    )  # fmt: skip
