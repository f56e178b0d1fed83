"""The fixed synthetic scene that proposal selection, RoIAlign and final suppression are timed on: the same for everyone.

Their time depends on the data (how many scores pass, how much overlaps), and random weights give none of it. The scene, in
fractions of the image so that it fits every input size, seeded by a constant:

- 20 objects of random class, sides log-uniform from 6 % to 60 % of the image's, placed uniformly.
- Objectness logits -5 + N(0, 1.2), plus 10 x IoU with the best object; deltas point 80 % of the way to an object overlapping
  by more than 0.3 (suppression then has crowds to thin out), N(0, 0.2) elsewhere.
- Guided anchoring: location logits -6.5 + N(0, 1), plus 10 x IoU of the cell's square with the best object; shapes and deltas 80 %
  of the way to an object overlapping by more than 0.15 (squares) and 0.3 (anchors); objectness as above, on the predicted anchors.
- Regions: 30 % are objects with corners moved by N(0, 10 %) of a side, the rest background boxes (sides as above).
- Class logits N(0, 1); background gets +6 in background regions; in object regions background gets +3 and the object's class
  +6 x (a uniform number): some are sure, some below the 0.05 threshold, some have a second class over it.
- One-stage detectors: class logits -7 + N(0, 1) on every anchor, plus 9 x IoU with the best object for its class; box codes as
  the deltas of the RPN.

Feature maps and images are normal numbers. Whatever of this changes makes old measurements incomparable: see PROTOCOL in
`fastnas.latency.engines`.
"""

from functools import lru_cache

import numpy as np

from fastnas.blueprint import blocks as b
from fastnas.models.anchors import head_anchors, level_anchors
from fastnas.models.onnx.weights import normal

SEED = 20240607
OBJECTS = 20


def block_inputs(spec: b.Spec, shapes: b.Shapes) -> list[np.ndarray]:
    """Float32 arrays to time one block with, one a shape."""
    if isinstance(spec, b.Proposals):
        return list(_proposal_maps(spec, shapes))
    if isinstance(spec, b.GuidedProposals):
        return list(_guided_maps(spec, shapes))
    if isinstance(spec, b.RoiPool):
        height, width = (side * spec.strides[0] for side in shapes[0][2:])
        return [*[normal(shape, 1.0) for shape in shapes[:-1]], _regions((height, width), shapes[-1][0])[0]]
    if isinstance(spec, b.Detections):
        return list(_head_outputs(spec, shapes))
    if isinstance(spec, b.Refine):
        return [_regions(spec.input, shapes[0][0])[0], normal(shapes[1], 1.0)]
    if isinstance(spec, b.ANCHOR_HEADS):
        return list(_anchor_maps(spec, shapes))
    return [normal(shape, 1.0) for shape in shapes]


def replaced(spec: b.Spec, inputs: int) -> range:
    """Which of a block's inputs are read from the scene when a whole network is timed: those its time depends on."""
    if isinstance(spec, (*b.PROPOSERS, *b.SUPPRESSIONS)):
        return range(inputs)
    if isinstance(spec, b.Refine):
        return range(1)  # its boxes, of which there are as many as in the stage's pool
    return range(inputs - 1, inputs) if isinstance(spec, b.RoiPool) else range(0)


@lru_cache(maxsize=8)
def _proposal_maps(spec: b.Proposals, shapes: b.Shapes) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(SEED + 1)
    objects, _ = _objects(spec.input)
    levels = len(shapes) // 2
    scores, deltas = [], []
    for level in range(levels):
        _, count, height, width = shapes[level]
        anchors = level_anchors(spec.input, (height, width), spec.strides[level], spec.scale, spec.ratios, sizes=spec.sizes)
        best, overlap = _best_overlap(anchors, objects)
        score = -5 + random.normal(0, 1.2, len(anchors)) + 10 * overlap
        delta = random.normal(0, 0.2, (len(anchors), 4))
        near = overlap > 0.3
        delta[near] = 0.8 * _encode(anchors[near], objects[best[near]]) + random.normal(0, 0.05, (near.sum(), 4))
        scores.append(_as_map(score.reshape(height, width, count)))
        deltas.append(_as_map(delta.reshape(height, width, 4 * count)))
    return (*scores, *deltas)


@lru_cache(maxsize=8)
def _guided_maps(spec: b.GuidedProposals, shapes: b.Shapes) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(SEED + 4)
    objects, _ = _objects(spec.input)
    kinds = [], [], [], []
    for (_, _, height, width), stride in zip(shapes, spec.strides, strict=False):  # the maps of the other kinds come after
        squares = level_anchors(spec.input, (height, width), stride, spec.scale, spec.ratios)
        best, overlap = _best_overlap(squares, objects)
        location = -6.5 + random.normal(0, 1, len(squares)) + 10 * overlap
        sides = random.normal(0, 0.5, (len(squares), 2)) * spec.deviation
        near = overlap > 0.15
        sides[near] += 0.8 * _encode(squares[near], objects[best[near]])[:, 2:]
        center, half = (squares[:, :2] + squares[:, 2:]) / 2, np.exp(sides) * (squares[:, 2:] - squares[:, :2]) / 2
        anchors = np.concatenate([center - half, center + half], axis=1)
        best, overlap = _best_overlap(anchors, objects)
        score = -5 + random.normal(0, 1.2, len(anchors)) + 10 * overlap
        delta = random.normal(0, 0.2, (len(anchors), 4))
        near = overlap > 0.3
        delta[near] += 0.8 * _encode(anchors[near], objects[best[near]]) * np.repeat(spec.weights, 2)
        for kind, values in zip(kinds, (location, sides / spec.deviation, score, delta), strict=True):
            kind.append(_as_map(values.reshape(height, width, -1)))
    return tuple(array for kind in kinds for array in kind)


@lru_cache(maxsize=8)
def _regions(size: tuple[int, int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (count, 4) in an image of `size` and which object each shows (-1: background)."""
    random = np.random.default_rng(SEED + 2)
    objects, _ = _objects(size)
    boxes = _random_boxes(random, size, count)
    shown = np.where(random.random(count) < 0.3, random.integers(0, OBJECTS, count), -1)
    targets = objects[shown[shown >= 0]]
    sides = np.tile(targets[:, 2:] - targets[:, :2], 2)
    boxes[shown >= 0] = targets + random.normal(0, 0.1, targets.shape) * sides
    return _clip(boxes, size), shown


@lru_cache(maxsize=8)
def _head_outputs(spec: b.Detections, shapes: b.Shapes) -> tuple[np.ndarray, ...]:
    """Regions, class logits of every stage (the same of all) and deltas of the box head."""
    regions, columns = shapes[1]
    random = np.random.default_rng(SEED + 3)
    boxes, shown = _regions(spec.input, regions)
    objects, classes = _objects(spec.input)
    logits = random.normal(0, 1, (regions, columns))
    logits[:, 0] += np.where(shown >= 0, 3, 6)
    rows = np.flatnonzero(shown >= 0)
    labels = 1 + (classes[shown[rows]] * (columns - 1)).astype(np.int64)
    logits[rows, labels] += 6 * random.random(len(rows))
    deltas = random.normal(0, 0.5, (regions, shapes[-1][1] // 4, 4))
    deltas[rows] += 0.8 * (_encode(boxes[rows], objects[shown[rows]]) * np.repeat(spec.weights, 2))[:, None]
    stages = [logits.astype(np.float32)] * (len(shapes) - 2)
    return boxes, *stages, deltas.reshape(regions, -1).astype(np.float32)


@lru_cache(maxsize=2)
def _anchor_maps(spec: b.AnchorHead, shapes: b.Shapes) -> tuple[np.ndarray, ...]:
    """Class maps and box maps of a one-stage detector."""
    objects, classes = _objects(spec.input)
    levels = len(shapes) // 2
    logits, codes = [], []
    of_levels = head_anchors(spec, [shape[2:] for shape in shapes[:levels]])
    for level, ((_, channels, height, width), anchors) in enumerate(zip(shapes[:levels], of_levels, strict=True)):
        columns = channels // spec.anchors
        best, overlap = _best_overlap(anchors, objects)
        near = np.flatnonzero(overlap > 0)
        logit = normal((len(anchors), columns), 1.0, SEED + level) - np.float32(7)
        logit[near, (spec.background + classes[best[near]] * (columns - spec.background)).astype(np.int64)] += 9 * overlap[near]
        code = normal((len(anchors), 4), 0.2, SEED - 1 - level).copy()
        near = np.flatnonzero(overlap > 0.3)
        code[near] = 0.25 * code[near] + 0.8 * _encode(anchors[near], objects[best[near]])
        logits.append(_as_map(logit.reshape(height, width, channels)))
        codes.append(_as_map(code[:, spec.codes].reshape(height, width, -1)))  # the exchange of x and y undoes itself
    return (*logits, *codes)


def _objects(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (OBJECTS, 4) and classes as fractions in [0, 1)."""
    random = np.random.default_rng(SEED)
    return _random_boxes(random, size, OBJECTS), random.random(OBJECTS)


def _random_boxes(random: np.random.Generator, size: tuple[int, int], count: int) -> np.ndarray:
    scale = np.array([size[1], size[0]], np.float64)
    sides = np.exp(random.uniform(np.log(0.06), np.log(0.6), (count, 2)))
    top_left = random.random((count, 2)) * (1 - sides)
    return np.concatenate([top_left * scale, (top_left + sides) * scale], axis=1)


def _clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    boxes = np.clip(boxes, 0, [width, height, width, height])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)  # jitter may have turned a sliver inside out
    return boxes.astype(np.float32)


def _best_overlap(boxes: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index and IoU of the object that overlaps each box most."""
    best, overlap = np.zeros(len(boxes), np.int64), np.zeros(len(boxes), np.float32)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for index, (x1, y1, x2, y2) in enumerate(objects.astype(np.float32)):
        width = np.minimum(boxes[:, 2], x2) - np.maximum(boxes[:, 0], x1)
        height = np.minimum(boxes[:, 3], y2) - np.maximum(boxes[:, 1], y1)
        common = np.maximum(width, 0) * np.maximum(height, 0)
        iou = common / (area + (x2 - x1) * (y2 - y1) - common)
        better = iou > overlap
        best[better], overlap[better] = index, iou[better]
    return best, overlap


def _encode(boxes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Deltas that move `boxes` onto `targets` (Girshick et al. 2014, appendix C)."""
    sides, wanted = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    centre, aim = boxes[:, :2] + sides / 2, targets[:, :2] + wanted / 2
    return np.concatenate([(aim - centre) / sides, np.log(wanted / sides)], axis=1)


def _as_map(array: np.ndarray) -> np.ndarray:
    """(H, W, C) -> (1, C, H, W)."""
    return np.ascontiguousarray(array.transpose(2, 0, 1)[None], np.float32)
