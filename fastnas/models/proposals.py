"""Proposals of two-stage detectors: what the head of an RPN or of guided anchoring says, and the selection of the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastnas.blueprint import blocks as spec
from fastnas.models.anchors import level_anchors
from fastnas.models.boxes import clip, decode
from fastnas.ops import batched_nms

MIN_SIDE = 1e-3  # pixels; narrower proposals are dropped
MAX_LOG_SIDE = -math.log(1e-6)  # of guided anchors, either way


@dataclass(frozen=True)
class RpnOutputs:
    """Of every level: objectness (N, n_l), deltas (N, n_l, 4), anchors (n_l, 4); float32."""

    scores: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


@dataclass(frozen=True)
class GuidedOutputs(RpnOutputs):
    """Anchors are (N, n_l, 4), of every image its own, without gradient. Besides: locations (N, n_l), shapes (N, n_l, 2) and the
    squares (n_l, 4) that the shapes belong to."""

    locations: list[Tensor]
    shapes: list[Tensor]
    squares: list[Tensor]


def make_anchors(s: spec.Proposer, maps: list[tuple[int, int]]) -> list[Tensor]:
    """Anchors (H * W * A, 4) of every level (of guided anchoring: squares), for maps of the given (height, width)."""
    return [
        torch.from_numpy(level_anchors(s.input, hw, stride, s.scale, s.ratios, sizes=s.sizes))
        for hw, stride in zip(maps, s.strides, strict=True)
    ]


def read_maps(s: spec.Proposer, maps: Sequence[Tensor], anchors: list[Tensor]) -> RpnOutputs:
    """What lies in the maps of all levels, in the order of a selection's inputs; anchors: as of `make_anchors`."""
    levels = len(s.strides)
    kinds = [maps[start : start + levels] for start in range(0, len(maps), levels)]
    *guides, scores, deltas = ([_flatten(m) for m in kind] for kind in kinds)
    scores = [level.flatten(1) for level in scores]
    deltas = [level.unflatten(2, (-1, 4)).flatten(1, 2) for level in deltas]
    if not guides:
        return RpnOutputs(scores, deltas, anchors)
    locations, shapes = guides
    guided = [guided_anchors(s, square, shape.detach()) for square, shape in zip(anchors, shapes, strict=True)]
    return GuidedOutputs(scores, deltas, guided, [level.flatten(1) for level in locations], shapes, anchors)


def _flatten(m: Tensor) -> Tensor:
    """(N, C, H, W) -> float32 (N, H * W, C)."""
    return m.permute(0, 2, 3, 1).flatten(1, 2).float()


def guided_anchors(s: spec.GuidedProposals, squares: Tensor, shapes: Tensor) -> Tensor:
    """Boxes (..., 4) with the centres of squares (..., 4) and the predicted sides, from shapes (..., 2)."""
    side = squares[..., 2:] - squares[..., :2]
    center = squares[..., :2] + 0.5 * side
    half = 0.5 * side * (shapes * s.deviation).clamp(-MAX_LOG_SIDE, MAX_LOG_SIDE).exp()
    return torch.cat([center - half, center + half], -1)


@torch.no_grad()
def select_proposals(s: spec.Proposer, outputs: RpnOutputs, proposals: int | None = None, everywhere: bool = False) -> list[Tensor]:
    """Per image boxes (<= proposals, 4), best first. everywhere: whatever the location branch says."""
    boxes, best, group = [], [], []
    levels = len(outputs.scores)
    for level, (scores, deltas, anchors) in enumerate(zip(outputs.scores, outputs.deltas, outputs.anchors, strict=True)):
        if isinstance(outputs, GuidedOutputs) and not everywhere:
            likely = outputs.locations[level] >= math.log(s.location / (1 - s.location))
            scores = torch.where(likely, scores, -torch.inf)
        top, index = scores.topk(min(s.topk, scores.shape[1]), dim=1)
        columns = index[..., None].expand(-1, -1, 4)
        chosen = anchors[index] if anchors.dim() == 2 else anchors.gather(1, columns)
        boxes.append(decode(deltas.gather(1, columns), chosen, s.weights))
        best.append(top)
        group.append(torch.arange(len(scores), device=index.device)[:, None].expand_as(index) * levels + level)
    flat = clip(torch.cat(boxes, 1), s.input).flatten(0, 1)
    score, groups = torch.cat(best, 1).flatten(), torch.cat(group, 1).flatten()
    large = (flat[:, 2:] - flat[:, :2]).amin(1) >= MIN_SIDE
    usable = (large & (score > -torch.inf)).nonzero()[:, 0]
    flat, score, groups = flat[usable], score[usable], groups[usable]
    kept = batched_nms(flat, score, groups, s.nms)
    flat, owner = flat[kept], groups[kept] // levels
    return [flat[owner == image][: proposals or s.proposals] for image in range(len(outputs.scores[0]))]
