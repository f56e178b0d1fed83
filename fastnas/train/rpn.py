"""Targets and losses of the region proposal network (Ren et al. 2015), as torchvision computes them.

Anchors with IoU >= 0.7 or the best of a box are positive, < 0.3 negative; 256 sampled an image, half of them positive at most;
binary cross-entropy and smooth L1 (beta 1/9). Crowd regions are never negatives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.blueprint import blocks as spec
from fastnas.models.boxes import encode
from fastnas.models.proposals import select_proposals
from fastnas.models.two_stage import TwoStageDetector
from fastnas.train.config import Sampling
from fastnas.train.matching import drop_crowded, match, pairwise_iou, sample

BETA = 1 / 9


def rpn_losses(
    detector: TwoStageDetector, values: dict[str, Tensor], targets: list, sampling: Sampling, rng: torch.Generator
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Losses of a batch and its proposals, boxes (n, 4) of every image. values: as returned by `detector.dense`."""
    outputs = detector.rpn_outputs(values)
    scores, deltas, anchors = torch.cat(outputs.scores, 1), torch.cat(outputs.deltas, 1), torch.cat(outputs.anchors)
    losses = anchor_losses(scores, deltas, anchors.expand(len(scores), -1, -1), targets, sampling, rng)
    return losses, select_proposals(detector.proposals, outputs, sampling.proposals)


def anchor_losses(
    scores: Tensor, deltas: Tensor, anchors: Tensor, targets: list, sampling: Sampling, rng,
    weights: spec.Weights = spec.Proposals.weights, beta: float = BETA,
) -> dict[str, Tensor]:  # fmt: skip
    """Losses from objectness (N, n), deltas (N, n, 4) of these weights and anchors (N, n, 4); beta: of smooth L1."""
    logits, wanted, predicted, encoded = [], [], [], []
    for image, (target, own) in enumerate(zip(targets, anchors, strict=True)):
        matched = match(pairwise_iou(target.boxes, own), 0.3, 0.7, rescue=True)
        matched = drop_crowded(matched, own, target.ignore)
        positive, negative = sample(matched, sampling.anchors, sampling.anchor_positives, rng)
        logits.append(scores[image, torch.cat([positive, negative])])
        wanted.append(torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]))
        predicted.append(deltas[image, positive])
        encoded.append(encode(target.boxes[matched[positive]], own[positive], weights))
    total = max(1, sum(map(len, wanted)))
    objectness = F.binary_cross_entropy_with_logits(torch.cat(logits), torch.cat(wanted), reduction="sum") / total
    box = F.smooth_l1_loss(torch.cat(predicted), torch.cat(encoded), beta=beta, reduction="sum") / total
    return {"rpn_objectness": objectness, "rpn_box": box}
