"""Cascade R-CNN: the losses of every stage against a reference that walks box by box in float64."""

import copy
import math

import pytest
import torch

from fastnas.blueprint import parse
from fastnas.data.dataset import Target
from fastnas.models import build
from fastnas.models.two_stage import rows
from fastnas.train.config import Sampling
from fastnas.train.losses import detection_losses

TEXT = "96x128/basic:1-2-2,base=8,stem=3x3/fpn:16/rpn:40,scale=4/cascade:3,hidden=32{}/classes:4"
EVERYTHING = Sampling(regions=10_000, region_positives=0.5, proposals=40)
STAGES = {  # IoU, deviations of centres and sides, weight of the losses
    "": [(0.5, 0.1, 0.2, 1), (0.6, 0.05, 0.1, 0.5), (0.7, 0.033, 0.067, 0.25)],
    ",quality=high": [(0.6, 0.075, 0.15, 1), (0.7, 0.0375, 0.075, 0.5), (0.75, 0.02475, 0.05025, 0.25)],
}


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def center(box):
    x1, y1, x2, y2 = box
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def moved(box, deltas, deviations, size):
    (x, y, w, h), (dx, dy, dw, dh) = center(box), [d * s for d, s in zip(deltas, deviations, strict=True)]
    x, y, w, h = x + dx * w, y + dy * h, w * math.exp(dw), h * math.exp(dh)
    corners = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    return [min(max(value, 0), size[1 - index % 2]) for index, value in enumerate(corners)]


def smooth_l1(error):
    return 0.5 * error**2 if abs(error) < 1 else abs(error) - 0.5


def reference_losses(detector, images, targets, proposals, stages):
    """Nothing is sampled: every region counts. Returns {name: loss} and how many regions of each stage were positive."""
    detector = copy.deepcopy(detector).double()
    values = detector.dense(images.double())
    losses, positives, regions = {}, [], [boxes.tolist() for boxes in proposals]
    for number, (stage, (threshold, deviation, side, weight)) in enumerate(zip(detector.stages, stages, strict=True), 1):
        deviations = (deviation, deviation, side, side)
        regions = [own + target.boxes.tolist() for own, target in zip(regions, targets, strict=True)]
        logits, deltas, _ = detector.stage(values, stage, rows([torch.tensor(own, dtype=torch.float64) for own in regions]))
        logits, deltas = iter(logits.log_softmax(1).tolist()), iter(deltas.tolist())
        total, class_loss, box_loss, hits, following = 0, 0.0, 0.0, 0, []
        for own, target in zip(regions, targets, strict=True):
            truth, after = target.boxes.tolist(), []
            for index, region in enumerate(own):
                logit, delta = next(logits), next(deltas)
                overlaps = [iou(region, box) for box in truth]
                best = max(range(len(truth)), key=overlaps.__getitem__, default=None)
                positive = best is not None and overlaps[best] >= threshold
                class_loss -= logit[int(target.labels[best]) if positive else 0]
                total += 1
                if positive:
                    hits += 1
                    (x, y, w, h), (tx, ty, tw, th) = center(region), center(truth[best])
                    wanted = (tx - x) / w, (ty - y) / h, math.log(tw / w), math.log(th / h)
                    box_loss += sum(smooth_l1(d - t / s) for d, t, s in zip(delta, wanted, deviations, strict=True))
                if index < len(own) - len(truth):
                    after.append(moved(region, delta, deviations, images.shape[-2:]))
            following.append(after)
        losses |= {f"head{number}_class": weight * class_loss / total, f"head{number}_box": weight * box_loss / total}
        positives.append(hits)
        regions = following
    return losses, positives


@pytest.mark.parametrize("quality", STAGES)
def test_losses_equal_a_reference_in_float64(quality, monkeypatch):
    torch.manual_seed(0)
    detector = build(parse(TEXT.format(quality)))
    for number in (1, 2, 3):
        torch.nn.init.normal_(detector.blocks[f"head.stage{number}.box"].bbox_pred.weight, std=0.05)
    images = torch.randn(2, 3, 96, 128)
    truth = [torch.tensor([[10.0, 12, 50, 60], [60, 20, 120, 80]]), torch.tensor([[30.0, 30, 70, 90]])]
    around = [torch.cat([own + 4 * torch.randn(10, len(own), 4), own[None] + 25]).flatten(0, 1) for own in truth]
    proposals = [boxes.clamp(0, 96) for boxes in around]
    proposals = [boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)] for boxes in proposals]
    targets = [Target(boxes, torch.arange(1, len(boxes) + 1), torch.zeros(0, 4)) for boxes in truth]
    monkeypatch.setattr("fastnas.train.rpn.select_proposals", lambda *_: proposals)
    losses = detection_losses(detector.eval(), images, targets, EVERYTHING, torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, positives = reference_losses(detector, images, targets, proposals, STAGES[quality])
    assert set(losses) == {"rpn_objectness", "rpn_box", *expected}
    assert min(positives) > 6 and len(set(positives)) > 1, "every stage has something to learn, and not the same"
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name


def test_boxes_between_stages_carry_no_gradient():
    torch.manual_seed(0)
    detector = build(parse(TEXT.format("")))
    target = Target(torch.tensor([[10.0, 12, 50, 60]]), torch.tensor([1]), torch.zeros(0, 4))
    losses = detection_losses(detector, torch.randn(1, 3, 96, 128), [target], Sampling(), torch.Generator().manual_seed(0))
    (losses["head3_class"] + losses["head3_box"]).backward()
    touched = {name.split(".")[0] for name, p in detector.head.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"stage3"}
