"""Targets and losses of guided anchoring (Wang et al., CVPR 2019; numbers of mmdetection's GA-RPN).

Location: a box belongs to the level of its size; the middle fifth of its sides is positive, the rest of its middle half is left
out, there and on the neighbouring levels; elsewhere it is background of weight 0.1. Focal loss over a two-hundredth of all cells.
Shape: a cell takes the box that the best of nine anchors of usual shapes overlaps most, from IoU 0.7 on or where it is the best of
a box (from 0.3 on); 256 cells sampled an image, half of them positive at most; bounded IoU loss of the positive ones.
Objectness and boxes: as of an RPN (see rpn.py) on the predicted anchors. Crowd regions are never negatives.
"""

import math

import torch
from torch import Tensor

from fastnas.blueprint import blocks as spec
from fastnas.blueprint.parts.rpn import ASPECT_RATIOS
from fastnas.models.anchors import level_anchors
from fastnas.models.proposals import GuidedOutputs, guided_anchors, select_proposals
from fastnas.models.two_stage import TwoStageDetector
from fastnas.train.config import Sampling
from fastnas.train.focal import focal_loss
from fastnas.train.matching import drop_crowded, match, pairwise_iou, sample
from fastnas.train.rpn import anchor_losses

ALPHA, GAMMA = 0.25, 2.0
CENTER, LEFT_OUT = 0.2, 0.5  # shares of a box's sides
NEGATIVE = 0.1  # weight of background cells
CELLS = 200  # focal loss is divided by this share of all cells
LOW, HIGH = 0.3, 0.7
OCTAVES = 3  # with the usual aspect ratios nine anchors a cell
BETA = 1.0  # of the boxes' smooth L1
SHAPE_BETA = 0.2  # of the bounded IoU loss


def guided_losses(
    detector: TwoStageDetector, values: dict[str, Tensor], targets: list, sampling: Sampling, rng: torch.Generator
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Losses of a batch and its proposals, boxes (n, 4) of every image. values: as returned by `detector.dense`."""
    s, outputs = detector.proposals, detector.rpn_outputs(values)
    maps = [tuple(values[name].shape[-2:]) for name in detector.score_maps]
    scores, deltas, anchors = (torch.cat(levels, 1) for levels in (outputs.scores, outputs.deltas, outputs.anchors))
    losses = {
        "rpn_location": location_loss(torch.cat(outputs.locations, 1), s, maps, targets),
        "rpn_shape": shape_loss(outputs, s, maps, targets, sampling, rng),
        **anchor_losses(scores, deltas, anchors, targets, sampling, rng, s.weights, BETA),
    }
    return losses, select_proposals(s, outputs, sampling.proposals, everywhere=True)


def location_loss(locations: Tensor, s: spec.GuidedProposals, maps: list[tuple[int, int]], targets: list) -> Tensor:
    """Of logits (N, n) of all levels, whose maps are of the given (height, width)."""
    labels = torch.stack([torch.cat([m.flatten() for m in location_labels(s, maps, t.boxes, t.ignore)]) for t in targets])
    total = 0.0
    for label, weight in ((0, 1.0), (-1, NEGATIVE)):
        own = labels == label
        total = total + weight * focal_loss(locations[own][:, None], labels[own], ALPHA, GAMMA)
    return total / (labels.numel() / CELLS)


def location_labels(s: spec.GuidedProposals, maps: list[tuple[int, int]], boxes: Tensor, ignore: Tensor) -> list[Tensor]:
    """For every level (H, W): 0 an object's cells, -1 background, -2 left out."""
    labels = [torch.full(hw, -1) for hw in maps]
    beside = [torch.zeros(hw, dtype=torch.bool) for hw in maps]
    for box in boxes.tolist():
        size = math.sqrt(max((box[2] - box[0]) * (box[3] - box[1]), 1e-12))
        level = math.floor(math.log2(size) - math.log2(s.scale * s.strides[0]) + 0.5)
        level = min(max(level, 0), len(maps) - 1)
        labels[level][_cells(box, LEFT_OUT, s.strides[level], maps[level])] = -2
        labels[level][_cells(box, CENTER, s.strides[level], maps[level])] = 0
        for near in (level - 1, level + 1):
            if 0 <= near < len(maps):
                beside[near][_cells(box, LEFT_OUT, s.strides[near], maps[near])] = True
    for level, stride in enumerate(s.strides):
        for crowd in ignore.tolist():
            beside[level][_cells(crowd, 1.0, stride, maps[level])] = True
        labels[level][beside[level] & (labels[level] == -1)] = -2
    return labels


def _cells(box: list[float], share: float, stride: int, hw: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a map under the middle `share` of a box's sides; at least one, if the box is inside."""
    x1, y1, x2, y2 = (value / stride for value in box)
    edge = (1 - share) / 2

    def between(low: float, high: float, most: int) -> slice:
        first, last = round((1 - edge) * low + edge * high), round(edge * low + (1 - edge) * high)
        return slice(min(max(first, 0), most), min(max(last, 0), most) + 1)

    return between(y1, y2, hw[0]), between(x1, x2, hw[1])


def shape_loss(
    outputs: GuidedOutputs, s: spec.GuidedProposals, maps: list[tuple[int, int]], targets: list, sampling: Sampling, rng
) -> Tensor:
    levels = zip(maps, s.strides, strict=True)
    usual = [torch.from_numpy(level_anchors(s.input, hw, stride, s.scale, ASPECT_RATIOS, OCTAVES)) for hw, stride in levels]
    usual = torch.cat(usual)
    shapes, squares, count = torch.cat(outputs.shapes, 1), torch.cat(outputs.squares), 0
    predicted, wanted = [], []
    for own, target in zip(shapes, targets, strict=True):
        iou = pairwise_iou(target.boxes, usual).unflatten(1, (len(squares), OCTAVES * len(ASPECT_RATIOS))).amax(2)
        matched = match(torch.where(iou >= LOW, iou, 0.0), LOW, HIGH, rescue=True)
        matched = drop_crowded(matched, squares, target.ignore)
        positive, negative = sample(matched, sampling.anchors, sampling.anchor_positives, rng)
        predicted.append(guided_anchors(s, squares[positive], own[positive]))
        wanted.append(target.boxes[matched[positive]])
        count += len(positive) + len(negative)
    return bounded_iou_loss(torch.cat(predicted), torch.cat(wanted)) / max(1, count)


def bounded_iou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Sum over boxes (n, 4) (Tychsen-Smith & Petersson 2018): for each coordinate the IoU that the others could still reach."""
    side, wanted = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    distance = ((targets[:, :2] + targets[:, 2:]) - (boxes[:, :2] + boxes[:, 2:])).abs()  # twice that of the centres
    center = 1 - ((wanted - distance) / (wanted + distance)).clamp(min=0)
    extent = 1 - torch.minimum(wanted / side, side / wanted)
    error = torch.cat([center, extent], 1)
    return torch.where(error < SHAPE_BETA, 0.5 * error**2 / SHAPE_BETA, error - 0.5 * SHAPE_BETA).sum()
