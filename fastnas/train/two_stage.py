"""Targets and losses of two-stage detectors: Faster R-CNN (Ren et al. 2015) as torchvision computes them, and Cascade R-CNN (Cai &
Vasconcelos 2018).

Every stage of the head gets proposals + ground truth; a region is positive from the stage's IoU on; a quarter of the sample is
positive; cross-entropy and smooth L1 on the deltas (of the true class). Regions of the next stage are the sampled ones, moved by
the deltas and without those that were ground truth (as mmdetection has it). Crowd regions are never negatives.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.blueprint import blocks as spec
from fastnas.blueprint.parts.rcnn import Stage
from fastnas.models.boxes import encode
from fastnas.models.two_stage import TwoStageDetector, rows
from fastnas.train.config import Sampling
from fastnas.train.guided import guided_losses
from fastnas.train.matching import drop_crowded, match, pairwise_iou, sample
from fastnas.train.rpn import rpn_losses

PROPOSERS: dict[type[spec.Spec], Callable] = {spec.Proposals: rpn_losses, spec.GuidedProposals: guided_losses}


def two_stage_losses(
    detector: TwoStageDetector, images: Tensor, targets: list, sampling: Sampling, rng: torch.Generator
) -> dict[str, Tensor]:
    """Losses of a batch; see `fastnas.train.losses.detection_losses`."""
    values = detector.dense(images)
    losses, regions = PROPOSERS[type(detector.proposals)](detector, values, targets, sampling, rng)
    training = detector.network.blueprint.head.training
    for number, (stage, wanted) in enumerate(zip(detector.stages, training, strict=True), 1):
        samples = [_sample_regions(boxes, target, wanted, sampling, rng) for boxes, target in zip(regions, targets, strict=True)]
        logits, deltas, refined = detector.stage(values, stage, rows([own.boxes for own in samples]))
        part = "head" if len(training) == 1 else f"head{number}"
        for name, loss in _stage_losses(logits.float(), deltas.float(), samples, wanted).items():
            losses[f"{part}_{name}"] = loss
        moved = refined.detach()[:, 1:].split([len(own.boxes) for own in samples])
        regions = [boxes[~own.truth] for boxes, own in zip(moved, samples, strict=True)]
    return losses


@dataclass(frozen=True)
class _Regions:
    """Sampled regions of one image; the first `len(deltas)` are positive."""

    boxes: Tensor
    labels: Tensor
    deltas: Tensor
    truth: Tensor  # which of the boxes are ground truth themselves


@torch.no_grad()
def _sample_regions(proposals: Tensor, target, stage: Stage, sampling: Sampling, rng: torch.Generator) -> _Regions:
    boxes = torch.cat([proposals, target.boxes])
    matched = match(pairwise_iou(target.boxes, boxes), stage.iou, stage.iou, rescue=False)
    matched = drop_crowded(matched, boxes, target.ignore)
    positive, negative = sample(matched, sampling.regions, sampling.region_positives, rng)
    labels = torch.cat([target.labels[matched[positive]], torch.zeros(len(negative), dtype=torch.int64)])
    deltas = encode(target.boxes[matched[positive]], boxes[positive], stage.weights)
    chosen = torch.cat([positive, negative])
    return _Regions(boxes[chosen], labels, deltas, chosen >= len(proposals))


def _stage_losses(logits: Tensor, deltas: Tensor, samples: list[_Regions], stage: Stage) -> dict[str, Tensor]:
    labels = torch.cat([own.labels for own in samples])
    positive = labels.nonzero()[:, 0]
    codes = deltas.unflatten(1, (-1, 4))  # one for all classes, one a class, or one a logit
    predicted = codes[positive, 0 if codes.shape[1] == 1 else labels[positive] + codes.shape[1] - logits.shape[1]]
    encoded = torch.cat([own.deltas for own in samples])
    scale = stage.loss / max(1, len(labels))
    return {
        "class": scale * F.cross_entropy(logits, labels, reduction="sum"),
        "box": scale * F.smooth_l1_loss(predicted, encoded, beta=stage.beta, reduction="sum"),
    }
