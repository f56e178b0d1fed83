"""Ten thousand small problems: the indices of torchvision's nms, and class by class those of batched_nms.

Many problems share one test, because the fixed cost of a test is that of a hundred problems.
"""

import pytest
import torch
import torchvision

from fastnas import ops
from tests.ops.nms_problems import KINDS, class_by_class, padded

PROBLEMS = 2600  # of each kind
THRESHOLDS = [0.0, 0.1, 0.3, 1 / 3, 0.5, 0.6, 0.7, 1.0]


def problems(kind, count):
    generator = torch.Generator().manual_seed(17)
    for seed in range(count):
        size = int(torch.randint(0, 40 if seed % 8 else 200, (), generator=generator))
        classes = int(torch.randint(1, 6, (), generator=generator))
        boxes, scores = kind(size, seed)
        idxs = torch.randint(-2, classes, (size,), generator=generator)
        yield boxes, scores, idxs, THRESHOLDS[seed % len(THRESHOLDS)]


@pytest.mark.parametrize("kind", KINDS)
def test_nms_keeps_what_torchvision_keeps(kind):
    different = [
        (boxes, scores, threshold)
        for boxes, scores, _, threshold in problems(kind, PROBLEMS)
        if not torch.equal(ops.nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))
    ]
    assert not different, f"{len(different)} of {PROBLEMS} differ, such as {min(different, key=lambda d: len(d[0]))}"


@pytest.mark.parametrize("kind", KINDS)
def test_batched_and_padded_keep_what_class_by_class_keeps(kind):
    for boxes, scores, idxs, threshold in problems(kind, 500):
        expected = class_by_class(torchvision.ops.nms, boxes, scores, idxs, threshold)
        assert torch.equal(ops.batched_nms(boxes, scores, idxs, threshold), expected)

        above = torch.where(scores > 0.4)[0]
        expected = above[class_by_class(torchvision.ops.nms, boxes[above], scores[above], idxs[above], threshold)]
        indices, count = ops.nms_padded(boxes, scores, threshold, 9, idxs, score_threshold=0.4)
        assert torch.equal(indices, padded(expected, 9)) and count == min(len(expected), 9)


def test_doubles_too():
    for kind in KINDS:
        for boxes, scores, idxs, threshold in problems(kind, 100):
            boxes, scores = boxes.double(), scores.double()
            assert torch.equal(ops.nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))
            expected = class_by_class(torchvision.ops.nms, boxes, scores, idxs, threshold)
            assert torch.equal(ops.batched_nms(boxes, scores, idxs, threshold), expected)
