"""One-stage detectors (EfficientDet: Tan, Pang & Le, CVPR 2020): every anchor of every level predicts classes and a box."""

import math

import torch
from torch import Tensor

from fastnas.blueprint import Network
from fastnas.blueprint import blocks as spec
from fastnas.models.anchors import cell_anchors
from fastnas.models.boxes import clip, decode, suppress
from fastnas.models.detector import Detector

CODE = (1.0, 1.0)
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
        """Class logits (N, n, classes), box codes (N, n, 4) and anchors (n, 4) of all levels; see `flatten_maps`."""
        classes, boxes = self.maps(values)
        return *flatten_maps(self.suppression, classes, boxes), torch.cat(self.anchors(classes))

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        return select_anchors(self.suppression, *self.outputs(self.dense(images)))

    def _make_anchors(self, maps: list[tuple[int, int]]) -> list[Tensor]:
        return make_anchors(self.suppression, maps)


def make_anchors(s: spec.AnchorDetections, maps: list[tuple[int, int]]) -> list[Tensor]:
    """Anchors (H * W * A, 4) of every level, for maps of the given (height, width)."""
    return [torch.from_numpy(cell_anchors(s.input, hw, s.scale, s.octaves, s.aspects)) for hw in maps]


def flatten_maps(s: spec.AnchorDetections, classes: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Class maps (N, A classes, H, W) and box maps (N, 4 A, H, W) of all levels -> float32 class logits (N, n, classes) and box
    codes (N, n, 4) as (tx, ty, tw, th), in the order of the anchors."""
    return _flatten(classes, classes[0].shape[1] // s.anchors), _flatten(boxes, 4)[..., XY]


def _flatten(maps: list[Tensor], columns: int) -> Tensor:
    return torch.cat([m.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, columns)).float() for m in maps], 1)


@torch.no_grad()
def select_anchors(s: spec.AnchorDetections, logits: Tensor, codes: Tensor, anchors: Tensor) -> list[dict[str, Tensor]]:
    """Final suppression of a batch from `flatten_maps` and anchors (n, 4): per image, best first, {"boxes" (D, 4), "scores" (D,),
    "labels" (D,) from 1}."""
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
    return suppress(s, boxes, score, label, image, images)


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
