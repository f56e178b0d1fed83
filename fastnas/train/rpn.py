"""Targets and losses of the region proposal network (Ren et al. 2015), as torchvision computes them.

Anchors with IoU >= 0.7 or the best of a box are positive, < 0.3 negative; 256 sampled an image, half of them positive at most;
binary cross-entropy and smooth L1 (beta 1/9). Crowd regions are never negatives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.models.boxes import RPN_WEIGHTS, encode, select_proposals
from fastnas.models.two_stage import TwoStageDetector
from fastnas.train.config import Sampling
from fastnas.train.matching import drop_crowded, match, pairwise_iou, sample

BETA = 1 / 9


def rpn_losses(
    detector: TwoStageDetector, values: dict[str, Tensor], targets: list, sampling: Sampling, rng: torch.Generator
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Losses of a batch and its proposals, boxes (n, 4) of every image. values: as returned by `detector.dense`."""
    scores, deltas, anchors = detector.rpn_outputs(values)
    losses = anchor_losses(torch.cat(scores, 1), torch.cat(deltas, 1), torch.cat(anchors), targets, sampling, rng)
    scores, deltas = [s.detach() for s in scores], [d.detach() for d in deltas]
    return losses, select_proposals(detector.proposals, scores, deltas, anchors, sampling.proposals)


def anchor_losses(scores: Tensor, deltas: Tensor, anchors: Tensor, targets: list, sampling: Sampling, rng) -> dict[str, Tensor]:
    """Losses from objectness (N, n), deltas (N, n, 4) and anchors (n, 4)."""
    logits, wanted, predicted, encoded = [], [], [], []
    for image, target in enumerate(targets):
        matched = match(pairwise_iou(target.boxes, anchors), 0.3, 0.7, rescue=True)
        matched = drop_crowded(matched, anchors, target.ignore)
        positive, negative = sample(matched, sampling.anchors, sampling.anchor_positives, rng)
        logits.append(scores[image, torch.cat([positive, negative])])
        wanted.append(torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]))
        predicted.append(deltas[image, positive])
        encoded.append(encode(target.boxes[matched[positive]], anchors[positive], RPN_WEIGHTS))
    total = max(1, sum(map(len, wanted)))
    objectness = F.binary_cross_entropy_with_logits(torch.cat(logits), torch.cat(wanted), reduction="sum") / total
    box = F.smooth_l1_loss(torch.cat(predicted), torch.cat(encoded), beta=BETA, reduction="sum") / total
    return {"rpn_objectness": objectness, "rpn_box": box}
