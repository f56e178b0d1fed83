"""Targets and losses of EfficientDet (Tan, Pang & Le, CVPR 2020, with the numbers of the authors' code).

Every anchor is positive (IoU >= 0.5 with a box, or the best of one) or negative. Classes: focal loss (Lin et al. 2017) with
alpha 0.25 and gamma 1.5 over all anchors and classes; boxes: Huber loss with delta 0.1 on the codes of positive anchors, weight 50.
Both are divided by the number of positives of the batch + 1. Crowd regions are never negatives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.models.boxes import encode
from fastnas.models.one_stage import CODE, OneStageDetector
from fastnas.train.config import Sampling
from fastnas.train.focal import focal_loss
from fastnas.train.matching import drop_crowded, match, pairwise_iou

ALPHA, GAMMA = 0.25, 1.5
DELTA, BOX_WEIGHT = 0.1, 50.0
MATCHED = 0.5


def efficientdet_losses(
    detector: OneStageDetector, images: Tensor, targets: list, sampling: Sampling, rng: torch.Generator
) -> dict[str, Tensor]:
    """Losses of a batch; see `fastnas.train.losses.detection_losses`. Nothing is sampled."""
    logits, codes, anchors = detector.outputs(detector.dense(images))
    return anchor_losses(logits, codes, torch.cat(anchors), targets)


def anchor_losses(logits: Tensor, codes: Tensor, anchors: Tensor, targets: list) -> dict[str, Tensor]:
    """Losses from logits (N, n, classes), box codes (N, n, 4) and anchors (n, 4), all float32."""
    labels = torch.full(logits.shape[:2], -1, dtype=torch.int64, device=logits.device)
    encoded = []
    for image, target in enumerate(targets):
        matched = match_anchors(target.boxes, anchors, target.ignore)
        positive = (matched >= 0).nonzero()[:, 0]
        labels[image] = torch.where(matched >= 0, 0, matched)
        labels[image, positive] = target.labels[matched[positive]] - 1
        encoded.append(encode(target.boxes[matched[positive]], anchors[positive], CODE))
    wanted, positives = torch.cat(encoded), labels >= 0
    total = len(wanted) + 1
    # A code that shall be zero exactly counts nothing, as in the authors' code.
    error = F.huber_loss(codes[positives], wanted, delta=DELTA, reduction="none") * (wanted != 0)
    return {
        "head_class": focal_loss(logits, labels, ALPHA, GAMMA) / total,
        "head_box": BOX_WEIGHT * error.sum() / (4 * total),
    }


def match_anchors(boxes: Tensor, anchors: Tensor, ignore: Tensor) -> Tensor:
    """Index of the box (m, 4) of every anchor (n, 4), -1: background, -2: inside a crowd region.

    The best anchor of a box is always its own; of several boxes with the same best anchor the first has it.
    """
    iou = pairwise_iou(boxes, anchors)
    matched = drop_crowded(match(iou, MATCHED, MATCHED, rescue=False), anchors, ignore)
    if len(boxes):
        overlap, best = iou.max(1)
        rows = torch.arange(len(boxes), device=boxes.device)[overlap > 0]
        owner = torch.full_like(matched, len(boxes)).scatter_reduce(0, best[overlap > 0], rows, "amin")
        matched = torch.where(owner < len(boxes), owner, matched)
    return matched
