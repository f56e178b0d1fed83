"""One-stage detectors (EfficientDet: Tan, Pang & Le, CVPR 2020): every anchor of every level predicts classes and a box."""

import math

import torch
from torch import Tensor

from fastnas.blueprint import Network
from fastnas.blueprint import blocks as spec
from fastnas.models.anchors import cell_anchors
from fastnas.models.boxes import clip, decode
from fastnas.models.detector import Detector
from fastnas.ops import batched_nms

SMALLEST = 1e-2  # pixels; narrower boxes are dropped
CODE = (1.0, 1.0, 1.0, 1.0)
XY = (1, 0, 3, 2)  # box codes are (ty, tx, th, tw): what swaps x and y, either way


class OneStageDetector(Detector):
    """Training calls `dense` and `outputs`."""

    dense_until = spec.AnchorDetections

    def __init__(self, network: Network):
        super().__init__(network)
        ((block, use),) = self._later_steps
        self.suppression: spec.AnchorDetections = block.spec
        self._maps = use.inputs

    def maps(self, values: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Class maps (N, A classes, H, W) and box maps (N, 4 A, H, W) of every level."""
        maps = [values[name] for name in self._maps]
        return maps[: len(maps) // 2], maps[len(maps) // 2 :]

    def outputs(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (N, n, classes), box codes (N, n, 4) as (tx, ty, tw, th) and anchors (n, 4) of all levels, float32."""
        classes, boxes = self.maps(values)
        anchors = torch.cat(self.anchors(classes))
        logits = _flatten(classes, self.network.blueprint.classes)
        return logits, _flatten(boxes, 4)[..., XY], anchors

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        return select_anchors(self.suppression, *self.outputs(self.dense(images)))

    def _make_anchors(self, maps: list[tuple[int, int]]) -> list:
        s = self.suppression
        return [cell_anchors(s.input, hw, s.scale, s.octaves, s.aspects) for hw in maps]


def _flatten(maps: list[Tensor], columns: int) -> Tensor:
    """Per level (N, A columns, H, W) -> float32 (N, all H W A, columns), in the order of the anchors."""
    return torch.cat([m.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, columns)).float() for m in maps], 1)


@torch.no_grad()
def select_anchors(s: spec.AnchorDetections, logits: Tensor, codes: Tensor, anchors: Tensor) -> list[dict[str, Tensor]]:
    """Final suppression of a batch from `outputs`: per image {"boxes" (D, 4), "scores" (D,), "labels" (D,) from 1}, best first."""
    images, total, classes = logits.shape
    # The best pairs are among the anchors with the best maxima: one pass over all logits, sorting only what is left.
    best, anchor = logits.amax(2).topk(min(s.topk, total), dim=1)
    anchor = anchor[:, : max(1, int((best > _logit(s.score)).sum(1).max()))] if images else anchor
    pairs = logits.gather(1, anchor[..., None].expand(-1, -1, classes)).flatten(1)
    score, pair = pairs.topk(min(s.topk, pairs.shape[1]), dim=1)
    image, place = (score > _logit(s.score)).nonzero(as_tuple=True)
    score, pair = score[image, place].sigmoid(), pair[image, place]
    row, label = anchor[image, pair // classes], pair % classes
    boxes = clip(decode(codes[image, row], anchors[row], CODE), s.input)
    large = ((boxes[:, 2:] - boxes[:, :2]).amin(1) >= SMALLEST).nonzero()[:, 0]
    boxes, score, label, image = boxes[large], score[large], label[large], image[large]
    kept = batched_nms(boxes, score, image * classes + label, s.nms)
    owner, found = image[kept], []
    for index in range(images):
        own = kept[owner == index][: s.detections]
        found.append({"boxes": boxes[own], "scores": score[own], "labels": label[own] + 1})
    return found


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
