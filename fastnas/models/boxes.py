"""Box arithmetic: decoding of deltas, final suppression.

Boxes are (x1, y1, x2, y2) in input pixels and always float32, whatever the features are.
Faster R-CNN (Ren et al. 2015); deltas, weights and clamping as torchvision's BoxCoder. `weights` are what the deltas of centres
and those of sides are multiplied with.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastnas.blueprint import blocks as spec
from fastnas.ops import batched_nms, soft_nms

MAX_LOG_SCALE = math.log(1000.0 / 16)
MIN_DETECTION = 1e-2  # pixels; narrower detections are dropped
MAX_CLASSES = 10_000  # that a blueprint may have
SIGMA = 0.5  # of Gaussian Soft-NMS


def encode(boxes: Tensor, reference: Tensor, weights: spec.Weights) -> Tensor:
    """Deltas (n, 4) that turn `reference` boxes (n, 4) into `boxes` (n, 4)."""
    size = reference[:, 2:] - reference[:, :2]
    target_size = boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, :2] + 0.5 * target_size - reference[:, :2] - 0.5 * size) / size
    return torch.cat([shift * weights[0], (target_size / size).log() * weights[1]], 1)


def decode(deltas: Tensor, reference: Tensor, weights: spec.Weights) -> Tensor:
    """Boxes (..., 4) of deltas (..., 4) relative to `reference` (..., 4)."""
    shift, log_scale = deltas[..., :2].float() / weights[0], deltas[..., 2:].float() / weights[1]
    size = reference[..., 2:] - reference[..., :2]
    center = reference[..., :2] + 0.5 * size + shift * size
    half = 0.5 * size * log_scale.clamp(max=MAX_LOG_SCALE).exp()
    return torch.cat([center - half, center + half], -1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) cut to an image of (height, width)."""
    x, y = boxes[..., 0::2].clamp(0, size[1]), boxes[..., 1::2].clamp(0, size[0])
    return torch.stack([x, y], -1).flatten(-2)


@torch.no_grad()
def select_detections(
    s: spec.Detections, regions: Tensor, logits: Sequence[Tensor], deltas: Tensor, images: int
) -> list[dict[str, Tensor]]:
    """Final suppression of a batch: per image {"boxes" (D, 4), "scores" (D,), "labels" (D,) from 1}, best first.

    regions (K, 5): image index and box; logits (K, classes + 1) of every stage; deltas (K, 4 D), D being one for all
    classes, one a class, or one a logit.
    """
    probability = sum(stage.float().softmax(1) for stage in logits)[:, 1:] / len(logits)
    region, label = (probability > s.score).nonzero(as_tuple=True)
    score = probability[region, label]
    codes = deltas.unflatten(1, (-1, 4))
    chosen = codes[region, 0 if codes.shape[1] == 1 else label + 1 + codes.shape[1] - logits[0].shape[1]]
    boxes = clip(decode(chosen, regions[region, 1:], s.weights), s.input)
    return suppress(s, boxes, score, label, regions[region, 0].long(), images)


def suppress(
    s: spec.Detections | spec.AnchorHead, boxes: Tensor, score: Tensor, label: Tensor, image: Tensor, images: int
) -> list[dict[str, Tensor]]:
    """Class-wise suppression of boxes (n, 4), scores, labels from 0 and image indices (n,): per image the best, labels from 1."""
    large = ((boxes[:, 2:] - boxes[:, :2]).amin(1) >= MIN_DETECTION).nonzero()[:, 0]
    boxes, score, label, image = boxes[large], score[large], label[large], image[large]
    groups = image * MAX_CLASSES + label
    if s.suppression == "hard":
        kept = batched_nms(boxes, score, groups, s.nms)
        score = score[kept]
    else:
        kept, score = soft_nms(boxes, score, s.suppression, s.nms, SIGMA, s.score, idxs=groups)
    boxes, label, owner = boxes[kept], label[kept] + 1, image[kept]
    found = []
    for index in range(images):
        own = (owner == index).nonzero()[: s.detections, 0]
        found.append({"boxes": boxes[own], "scores": score[own], "labels": label[own]})
    return found
