"""Targets and losses of Faster R-CNN (Ren et al. 2015), as torchvision computes them.

RPN: anchors with IoU >= 0.7 or the best of a box are positive, < 0.3 negative; 256 sampled an image, half of them positive at most;
binary cross-entropy and smooth L1 (beta 1/9). Head: proposals + ground truth, IoU >= 0.5 positive, a quarter of the sample
positive; cross-entropy and smooth L1 on the deltas of the true class. Crowd regions are never negatives.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.models.boxes import HEAD_WEIGHTS, RPN_WEIGHTS, encode, select_proposals
from fastnas.models.two_stage import TwoStageDetector
from fastnas.train.config import Sampling
from fastnas.train.matching import drop_crowded, match, pairwise_iou

BETA = 1 / 9


def two_stage_losses(
    detector: TwoStageDetector, images: Tensor, targets: list, sampling: Sampling, rng: torch.Generator
) -> dict[str, Tensor]:
    """Losses of a batch. images (N, 3, H, W) normalized; a target has boxes (n, 4), labels (n,) from 1, ignore (m, 4)."""
    values = detector.dense(images)
    scores, deltas, anchors = detector.rpn_outputs(values)
    losses = _rpn_losses(torch.cat(scores, 1), torch.cat(deltas, 1), torch.cat(anchors), targets, sampling, rng)
    with torch.no_grad():
        proposals = select_proposals(
            detector.proposals, [s.detach() for s in scores], [d.detach() for d in deltas], anchors, sampling.proposals
        )
        samples = [_sample_regions(boxes, target, sampling, rng) for boxes, target in zip(proposals, targets, strict=True)]
    logits, deltas = detector.regions(values, [sample.boxes for sample in samples])
    return losses | _head_losses(logits.float(), deltas.float(), samples)


def _sample(matched: Tensor, count: int, positives: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random indices of (positive, negative) matches, together at most `count`."""
    positive, negative = (matched >= 0).nonzero()[:, 0], (matched == -1).nonzero()[:, 0]
    take = min(len(positive), int(count * positives))
    rest = min(len(negative), count - take)
    positive = positive[torch.randperm(len(positive), generator=rng)[:take]]
    negative = negative[torch.randperm(len(negative), generator=rng)[:rest]]
    return positive, negative


def _rpn_losses(scores, deltas, anchors, targets, sampling: Sampling, rng) -> dict[str, Tensor]:
    logits, wanted, predicted, encoded = [], [], [], []
    for image, target in enumerate(targets):
        matched = match(pairwise_iou(target.boxes, anchors), 0.3, 0.7, rescue=True)
        matched = drop_crowded(matched, anchors, target.ignore)
        positive, negative = _sample(matched, sampling.anchors, sampling.anchor_positives, rng)
        logits.append(scores[image, torch.cat([positive, negative])])
        wanted.append(torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]))
        predicted.append(deltas[image, positive])
        encoded.append(encode(target.boxes[matched[positive]], anchors[positive], RPN_WEIGHTS))
    total = max(1, sum(map(len, wanted)))
    objectness = F.binary_cross_entropy_with_logits(torch.cat(logits), torch.cat(wanted), reduction="sum") / total
    box = F.smooth_l1_loss(torch.cat(predicted), torch.cat(encoded), beta=BETA, reduction="sum") / total
    return {"rpn_objectness": objectness, "rpn_box": box}


@dataclass(frozen=True)
class _Regions:
    """Sampled regions of one image; the first `len(deltas)` are positive."""

    boxes: Tensor
    labels: Tensor
    deltas: Tensor


def _sample_regions(proposals: Tensor, target, sampling: Sampling, rng) -> _Regions:
    boxes = torch.cat([proposals, target.boxes])
    matched = match(pairwise_iou(target.boxes, boxes), 0.5, 0.5, rescue=False)
    matched = drop_crowded(matched, boxes, target.ignore)
    positive, negative = _sample(matched, sampling.regions, sampling.region_positives, rng)
    labels = torch.cat([target.labels[matched[positive]], torch.zeros(len(negative), dtype=torch.int64)])
    deltas = encode(target.boxes[matched[positive]], boxes[positive], HEAD_WEIGHTS)
    return _Regions(boxes[torch.cat([positive, negative])], labels, deltas)


def _head_losses(logits: Tensor, deltas: Tensor, samples: list[_Regions]) -> dict[str, Tensor]:
    labels = torch.cat([sample.labels for sample in samples])
    positive = labels.nonzero()[:, 0]
    predicted = deltas.unflatten(1, (-1, 4))[positive, labels[positive]]
    encoded = torch.cat([sample.deltas for sample in samples])
    total = max(1, len(labels))
    return {
        "head_class": F.cross_entropy(logits, labels, reduction="sum") / total,
        "head_box": F.smooth_l1_loss(predicted, encoded, beta=BETA, reduction="sum") / total,
    }
