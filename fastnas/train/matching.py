"""Which box of an image an anchor or a region belongs to. Matches are indices of boxes; -1 is background, -2 is left out."""

import torch
from torch import Tensor


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (n, m) of boxes (n, 4) and (m, 4). Fastest with the longer list as `b`: its coordinates are read in columns."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.T[..., None], b.T.contiguous()
    overlap = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_(min=0)
    overlap *= (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_(min=0)
    union = ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)).sub_(overlap)
    return overlap.div_(union.clamp_(min=1e-9))


def match(iou: Tensor, low: float, high: float, rescue: bool) -> Tensor:
    """Index of the matched box for every column of iou (boxes, m); -1 below `low`, -2 between `low` and `high`.

    rescue: a column that is the best of some box (ties included) is matched whatever its IoU.
    """
    if iou.shape[0] == 0:
        return torch.full((iou.shape[1],), -1, device=iou.device)
    best, index = iou.max(0)
    matched = torch.where(best >= high, index, torch.where(best < low, -1, -2))
    if rescue:
        top = iou.amax(1, keepdim=True)
        columns = ((iou == top) & (top > 0)).any(0)
        matched = torch.where(columns, index, matched)
    return matched


def drop_crowded(matched: Tensor, boxes: Tensor, ignore: Tensor) -> Tensor:
    """Rows that are negative but lie by more than half inside a crowd region are left out (-2)."""
    if len(ignore) == 0:
        return matched
    overlap = (torch.minimum(boxes[:, None, 2:], ignore[:, 2:]) - torch.maximum(boxes[:, None, :2], ignore[:, :2])).clamp(min=0)
    inside = overlap.prod(2).amax(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=1e-9)
    return torch.where((matched == -1) & (inside > 0.5), -2, matched)


def sample(matched: Tensor, count: int, positives: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random indices of (positive, negative) matches, together at most `count`; of them this share positive at most."""
    positive, negative = (matched >= 0).nonzero()[:, 0], (matched == -1).nonzero()[:, 0]
    take = min(len(positive), int(count * positives))
    rest = min(len(negative), count - take)
    positive = positive[torch.randperm(len(positive), generator=rng)[:take]]
    negative = negative[torch.randperm(len(negative), generator=rng)[:rest]]
    return positive, negative
