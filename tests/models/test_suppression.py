"""Final suppression with Soft-NMS: against a reference that lowers the scores box by box."""

import math

import pytest
import torch
from torchvision.ops import box_iou

from fastnas.blueprint import blocks as b
from fastnas.models.boxes import suppress


def reference(boxes, scores, method, iou_threshold, floor):
    """Scores in the order of choice (Bodla et al. 2017, figure 2) and the rows that they belong to."""
    iou, left, chosen = box_iou(boxes, boxes).tolist(), dict(enumerate(scores.tolist())), []
    while left:
        best = max(left, key=left.get)
        score = left.pop(best)
        if score <= floor:
            break
        chosen.append((score, best))
        for other in left:
            overlap = iou[best][other]
            if method == "gaussian":
                left[other] *= math.exp(-(overlap**2) / 0.5)
            elif overlap > iou_threshold:
                left[other] *= 1 - overlap
    return chosen


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_suppression_equals_a_reference(method):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(80, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 10 + 30 * torch.rand(80, 2, generator=generator)], 1)
    scores, label, image = torch.rand(80, generator=generator), torch.arange(80) % 2, torch.arange(80) // 40
    spec = b.Detections((100, 100), 25, suppression=method)
    for index, found in enumerate(suppress(spec, boxes, scores, label, image, 2)):
        expected = []
        for kind in (0, 1):
            rows = ((image == index) & (label == kind)).nonzero()[:, 0]
            own = reference(boxes[rows].double(), scores[rows].double(), method, spec.nms, spec.score)
            expected += [(score, kind + 1, boxes[rows[row]]) for score, row in own]
        expected = sorted(expected, key=lambda item: -item[0])[:25]
        assert len(found["scores"]) == len(expected) == 25
        torch.testing.assert_close(found["scores"], torch.tensor([score for score, *_ in expected]))
        assert found["labels"].tolist() == [kind for _, kind, _ in expected]
        assert torch.equal(found["boxes"], torch.stack([box for *_, box in expected]))


def test_soft_suppression_keeps_what_hard_suppression_drops():
    boxes, scores = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12]]), torch.tensor([0.9, 0.8])
    zeros = torch.zeros(2, dtype=torch.int64)
    kept = [len(suppress(b.Detections((20, 20), 9, suppression=kind), boxes, scores, zeros, zeros, 1)[0]["scores"])
            for kind in ("hard", "linear", "gaussian")]  # fmt: skip
    assert kept == [1, 2, 2]
