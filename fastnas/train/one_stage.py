"""Targets and losses of EfficientDet (Tan, Pang & Le, CVPR 2020, with the numbers of the authors' code).

Every anchor is positive (IoU >= 0.5 with a box, or the best of one) or negative. Classes: focal loss (Lin et al. 2017) with
alpha 0.25 and gamma 1.5 over all anchors and classes; boxes: Huber loss with delta 0.1 on the codes of positive anchors, weight 50.
Both are divided by the number of positives of the batch + 1. Crowd regions are never negatives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastnas.models.boxes import encode
from fastnas.models.one_stage import CODE, OneStageDetector
from fastnas.train.matching import drop_crowded, match, pairwise_iou

ALPHA, GAMMA = 0.25, 1.5
DELTA, BOX_WEIGHT = 0.1, 50.0
MATCHED = 0.5


def one_stage_losses(detector: OneStageDetector, images: Tensor, targets: list) -> dict[str, Tensor]:
    """Losses of a batch; see `fastnas.train.losses.detection_losses`."""
    return anchor_losses(*detector.outputs(detector.dense(images)), targets)


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


def focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum of the sigmoid focal loss. logits (..., classes); labels (...): class from 0, -1 none of them, -2 left out."""
    positive = (labels >= 0).nonzero(as_tuple=True)
    right = logits[(*positive, labels[positive])]
    hits = (alpha * torch.sigmoid(-right) ** gamma * F.softplus(-right)).sum()
    # Nearly all entries are negatives: they are summed as if all were, and the few that are not are taken out again.
    left_out = _negatives(logits[labels == -2], alpha, gamma) + _negatives(right, alpha, gamma)
    return hits - left_out + _Negatives.apply(logits, alpha, gamma)


def _negatives(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    return ((1 - alpha) * torch.sigmoid(logits) ** gamma * F.softplus(logits)).sum()


class _Negatives(torch.autograd.Function):
    """`_negatives`, keeping one tensor of the size of the logits for backward instead of the five that autograd would."""

    @staticmethod
    def forward(ctx, logits: Tensor, alpha: float, gamma: float) -> Tensor:
        probability, cross_entropy = logits.sigmoid(), F.softplus(logits)
        factor = probability**gamma
        if ctx.needs_input_grad[0]:
            slope = (1 - probability).mul_(cross_entropy).mul_(gamma).add_(probability)
            ctx.save_for_backward(slope.mul_(factor).mul_(1 - alpha))
        return (1 - alpha) * cross_entropy.mul_(factor).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (slope,) = ctx.saved_tensors
        return slope * grad, None, None
