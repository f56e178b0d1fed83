"""Guided anchoring: targets and losses against references that go cell by cell."""

import math

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from fastnas.blueprint import blocks as b
from fastnas.blueprint import expand, parse
from fastnas.data.dataset import Target
from fastnas.models import build
from fastnas.models.proposals import guided_anchors
from fastnas.train.config import Sampling
from fastnas.train.guided import bounded_iou_loss, location_labels, location_loss, shape_loss

TEXT = "192x256/basic:1-2-1,base=8,stem=3x3/fpn:16/garpn:40,scale=8/rcnn:16,quality=high/classes:3"
SPEC = expand(parse(TEXT)).spec(b.GuidedProposals)
MAPS = [(48, 64), (24, 32), (12, 16), (6, 8)]
NOTHING = torch.zeros(0, 4)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    random = np.random.default_rng(seed)
    corner, side = random.random((count, 2)) * (200, 150), np.exp(random.uniform(math.log(6), math.log(150), (count, 2)))
    return torch.from_numpy(np.concatenate([corner, np.minimum(corner + side, (256, 192))], 1)).float()


def inside(box, share, stride, row, column) -> bool:
    """Whether a cell lies in the middle `share` of a box, whose edges are rounded to cells."""
    x1, y1, x2, y2 = (value / stride for value in box)
    for low, high, at in ((y1, y2, row), (x1, x2, column)):
        middle, reach = (low + high) / 2, share * (high - low) / 2
        if not round(middle - reach) <= at <= round(middle + reach):
            return False
    return True


def reference_label(boxes, level, row, column) -> int:
    label, stride, beside = -1, SPEC.strides[level], False
    for box in boxes:
        own = math.floor(math.log2(math.sqrt((box[2] - box[0]) * (box[3] - box[1]))) - math.log2(32) + 0.5)
        own = max(0, min(own, len(MAPS) - 1))
        if own == level and inside(box, 0.5, stride, row, column):
            label = 0 if inside(box, 0.2, stride, row, column) else -2
        beside |= abs(own - level) == 1 and inside(box, 0.5, stride, row, column)
    return -2 if label == -1 and beside else label


@pytest.mark.parametrize("seed", range(4))
def test_locations_equal_a_reference(seed):
    boxes = random_boxes(6, seed)
    labels = location_labels(SPEC, MAPS, boxes, NOTHING)
    seen = set()
    for level, (rows, columns) in enumerate(MAPS):
        expected = [[reference_label(boxes.tolist(), level, row, column) for column in range(columns)] for row in range(rows)]
        assert torch.equal(labels[level], torch.tensor(expected)), f"level {level}"
        seen |= {label for row in expected for label in row}
    assert seen == {0, -1, -2}


def test_crowds_are_no_background():
    boxes, crowd = random_boxes(3, 0), torch.tensor([[0.0, 0, 256, 192]])
    alone = torch.cat([m.flatten() for m in location_labels(SPEC, MAPS, boxes, NOTHING)])
    beside = torch.cat([m.flatten() for m in location_labels(SPEC, MAPS, boxes, crowd)])
    assert torch.equal(alone == 0, beside == 0) and not (beside == -1).any() and (alone == -1).any()


def test_the_location_loss_is_its_formula():
    boxes = [random_boxes(5, 1), NOTHING]
    targets = [Target(own, torch.ones(len(own), dtype=torch.int64), NOTHING) for own in boxes]
    cells = sum(rows * columns for rows, columns in MAPS)
    logits = torch.randn(2, cells, generator=torch.Generator().manual_seed(0)).double()
    total = 0.0
    for own, row in zip(boxes, logits.tolist(), strict=True):
        labels = torch.cat([m.flatten() for m in location_labels(SPEC, MAPS, own, NOTHING)]).tolist()
        for label, logit in zip(labels, row, strict=True):
            p = 1 / (1 + math.exp(-logit))
            total -= {0: 0.25 * (1 - p) ** 2 * math.log(p), -1: 0.1 * 0.75 * p**2 * math.log(1 - p), -2: 0.0}[label]
    assert location_loss(logits, SPEC, MAPS, targets).item() == pytest.approx(total / (2 * cells / 200), rel=1e-6)


def reference_bounded(box, target) -> float:
    total = 0.0
    for axis in (0, 1):
        (low, high), (first, last) = box[axis::2], target[axis::2]
        side, wanted, distance = high - low, last - first, abs((first + last) / 2 - (low + high) / 2)
        for error in (1 - max(0, (wanted - 2 * distance) / (wanted + 2 * distance)), 1 - min(wanted / side, side / wanted)):
            total += 0.5 * error**2 / 0.2 if error < 0.2 else error - 0.1
    return total


def test_the_bounded_iou_loss_is_its_formula():
    boxes, targets = random_boxes(30, 2), random_boxes(30, 3)
    targets[:10] = boxes[:10] + torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    expected = sum(reference_bounded(box, target) for box, target in zip(boxes.tolist(), targets.tolist(), strict=True))
    assert bounded_iou_loss(boxes, targets).item() == pytest.approx(expected, rel=1e-4)


def test_shapes_equal_a_reference():
    """Nothing is sampled: all positive cells count."""
    torch.manual_seed(0)
    detector = build(parse(TEXT))
    boxes = random_boxes(6, 5)
    outputs = detector.rpn_outputs(detector.dense(torch.randn(1, 3, 192, 256)))
    target = Target(boxes, torch.ones(6, dtype=torch.int64), NOTHING)
    sampling = Sampling(anchors=100_000, anchor_positives=1.0)
    loss = shape_loss(outputs, SPEC, MAPS, [target], sampling, torch.Generator().manual_seed(0))
    overlaps = []
    for (rows, columns), stride in zip(MAPS, SPEC.strides, strict=True):
        for row in range(rows):
            for column in range(columns):
                usual = []
                for ratio in (0.5, 1.0, 2.0):
                    for octave in range(3):
                        side = int(8 * stride * 2 ** (octave / 3))
                        w, h = side / math.sqrt(ratio), side * math.sqrt(ratio)
                        corner = [round(value) for value in (-w / 2, -h / 2, w / 2, h / 2)]
                        usual.append([edge + (column, row)[index % 2] * stride for index, edge in enumerate(corner)])
                overlaps.append(usual)
    iou = box_iou(boxes.double(), torch.tensor(overlaps, dtype=torch.float64).flatten(0, 1)).unflatten(1, (-1, 9)).amax(2)
    squares, shapes = torch.cat(outputs.squares), torch.cat(outputs.shapes, 1)[0]
    total, positives, negatives = 0.0, 0, 0
    for cell, own in enumerate(iou.T.tolist()):
        best = max(range(6), key=own.__getitem__)
        rescued = any(value >= 0.3 and value == iou[box].max() for box, value in enumerate(own))
        if own[best] >= 0.7 or rescued:
            anchor = guided_anchors(SPEC, squares[cell], shapes[cell])
            total, positives = total + reference_bounded(anchor.tolist(), boxes[best].tolist()), positives + 1
        negatives += own[best] < 0.3 and not rescued
    assert positives > 10
    assert loss.item() == pytest.approx(total / (positives + negatives), rel=1e-4)
    loss.backward()
    head = detector.blocks["rpn.head"]
    assert head.shape.weight.grad.any() and head.offset.weight.grad is None
