"""Targets and losses of RetinaNet (Lin et al., ICCV 2017), as torchvision computes them.

An anchor is positive at IoU >= 0.5 with a box, or where it is the best of one; background below 0.4; left out in between. Classes:
focal loss with alpha 0.25 and gamma 2; boxes: L1 on the codes of positive anchors. Both are divided by the positives of the image
(at least 1) and averaged over the images. Crowd regions are never negatives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.models.boxes import encode
from fastnas.models.one_stage import CODE, OneStageDetector
from fastnas.train.config import Sampling
from fastnas.train.focal import focal_loss
from fastnas.train.matching import drop_crowded, match, pairwise_iou

ALPHA, GAMMA = 0.25, 2.0
LOW, HIGH = 0.4, 0.5


def retinanet_losses(
    detector: OneStageDetector, images: Tensor, targets: list, sampling: Sampling, rng: torch.Generator
) -> dict[str, Tensor]:
    """Losses of a batch; see `fastnas.train.losses.detection_losses`. Nothing is sampled."""
    logits, codes, anchors = detector.outputs(detector.dense(images))
    anchors, first = torch.cat(anchors), detector.suppression.background
    class_loss, box_loss = [], []
    for own_logits, own_codes, target in zip(logits, codes, targets, strict=True):
        matched = match(pairwise_iou(target.boxes, anchors), LOW, HIGH, rescue=True)
        matched = drop_crowded(matched, anchors, target.ignore)
        positive = (matched >= 0).nonzero()[:, 0]
        labels = matched.clamp(max=0)
        labels[positive] = target.labels[matched[positive]] - 1 + first
        wanted = encode(target.boxes[matched[positive]], anchors[positive], CODE)
        total = max(1, len(positive))
        class_loss.append(focal_loss(own_logits, labels, ALPHA, GAMMA) / total)
        box_loss.append(F.l1_loss(own_codes[positive], wanted, reduction="sum") / total)
    return {"head_class": torch.stack(class_loss).mean(), "head_box": torch.stack(box_loss).mean()}
