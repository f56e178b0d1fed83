"""One-stage detectors (RetinaNet: Lin et al. 2017; EfficientDet: Tan, Pang & Le 2020): every anchor of every level predicts classes
and a box."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastnas.blueprint import Network
from fastnas.blueprint import blocks as spec
from fastnas.models.anchors import head_anchors
from fastnas.models.boxes import clip, decode, suppress
from fastnas.models.detector import Detector

CODE = (1.0, 1.0)


class OneStageDetector(Detector):
    """Training calls `dense` and `outputs`."""

    dense_until = spec.ANCHOR_HEADS

    def __init__(self, network: Network):
        super().__init__(network)
        ((block, use),) = self._later_steps
        self.suppression: spec.AnchorHead = block.spec
        self._maps = use.inputs

    def maps(self, values: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Class maps (N, A classes, H, W) and box maps (N, 4 A, H, W) of every level."""
        maps = [values[name] for name in self._maps]
        return maps[: len(maps) // 2], maps[len(maps) // 2 :]

    def outputs(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Class logits (N, n, classes) and box codes (N, n, 4), see `flatten_maps`; anchors (n_l, 4) of every level."""
        classes, boxes = self.maps(values)
        return *flatten_maps(self.suppression, classes, boxes), self.anchors(classes)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        return select_anchors(self.suppression, *self.outputs(self.dense(images)))

    def _make_anchors(self, maps: list[tuple[int, int]]) -> list[Tensor]:
        return make_anchors(self.suppression, maps)


def make_anchors(s: spec.AnchorHead, maps: list[tuple[int, int]]) -> list[Tensor]:
    """Anchors (H * W * A, 4) of every level, for maps of the given (height, width)."""
    return [torch.from_numpy(anchors) for anchors in head_anchors(s, maps)]


def flatten_maps(s: spec.AnchorHead, classes: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Class maps (N, A classes, H, W) and box maps (N, 4 A, H, W) of all levels -> float32 class logits (N, n, classes), with the
    head's background outputs, and box codes (N, n, 4) as (tx, ty, tw, th), in the order of the anchors."""
    return _flatten(classes, classes[0].shape[1] // s.anchors), _flatten(boxes, 4)[..., s.codes]


def _flatten(maps: list[Tensor], columns: int) -> Tensor:
    return torch.cat([m.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, columns)).float() for m in maps], 1)


@torch.no_grad()
def select_anchors(s: spec.AnchorHead, logits: Tensor, codes: Tensor, anchors: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Final suppression of a batch from `flatten_maps` and the anchors (n_l, 4) of every level: per image, best first, {"boxes"
    (D, 4), "scores" (D,), "labels" (D,) from 1}."""
    logits = logits[..., s.background :]
    if s.each_level:
        sizes = [len(own) for own in anchors]
        groups = zip(logits.split(sizes, 1), codes.split(sizes, 1), anchors, strict=True)
    else:
        groups = [(logits, codes, torch.cat(list(anchors)))]
    found = [_best_pairs(s, *group) for group in groups]
    boxes, score, label, image = (torch.cat(parts) for parts in zip(*found, strict=True))
    return suppress(s, boxes, score, label, image, len(logits))


def _best_pairs(s: spec.AnchorHead, logits: Tensor, codes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, scores, labels from 0 and image indices of the `topk` best (anchor, class) pairs over the score threshold."""
    images, total, classes = logits.shape
    # The best pairs are among the anchors with the best maxima: one pass over all logits, sorting only what is left.
    best, anchor = logits.amax(2).topk(min(s.topk, total), dim=1)
    anchor = anchor[:, : max(1, int((best > _logit(s.score)).sum(1).max()))] if images else anchor
    pairs = logits.gather(1, anchor[..., None].expand(-1, -1, classes)).flatten(1)
    score, pair = pairs.topk(min(s.topk, pairs.shape[1]), dim=1)
    image, place = (score > _logit(s.score)).nonzero(as_tuple=True)
    score, pair = score[image, place].sigmoid(), pair[image, place]
    row, label = anchor[image, pair // classes], pair % classes
    return clip(decode(codes[image, row], anchors[row], CODE), s.input), score, label, image


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
