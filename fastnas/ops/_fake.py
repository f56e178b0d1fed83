"""Shapes, types and strides of the operators' results, for torch.compile and torch.export.

The layout rule of csrc/cpu/roi_align.cpp is repeated here: a result is channels-last where the input's channels are
innermost, else contiguous.
"""

import torch
from torch import Tensor


def is_channels_last(features: Tensor) -> bool:
    return features.size(1) > 1 and features.stride(1) == 1


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return _kept(boxes)


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return _kept(boxes)


def _kept(boxes: Tensor) -> Tensor:
    most = boxes.size(0) if isinstance(boxes.size(0), int) else None
    kept = torch.library.get_ctx().new_dynamic_size(min=0, max=most)
    return boxes.new_empty(kept, dtype=torch.int64)


def _roi_align(
    features: list[Tensor],
    boxes: Tensor,
    pooled_height: int,
    pooled_width: int,
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
    canonical_size: float,
    canonical_level: float,
) -> Tensor:
    like = features[0]
    size = (boxes.size(0), like.size(1), pooled_height, pooled_width)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=_layout(is_channels_last(like)))


def _roi_align_backward(
    grad: Tensor,
    boxes: Tensor,
    batch: int,
    heights: list[int],
    widths: list[int],
    channels_last: list[bool],
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
    canonical_size: float,
    canonical_level: float,
) -> list[Tensor]:
    return [
        torch.empty((batch, grad.size(1), h, w), dtype=grad.dtype, device=grad.device, memory_format=_layout(last))
        for h, w, last in zip(heights, widths, channels_last, strict=True)
    ]


def register() -> None:
    """To be called once, after the library that declares the operators is loaded."""
    for name, shape in {
        "nms": _nms,
        "batched_nms": _batched_nms,
        "roi_align": _roi_align,
        "roi_align_backward": _roi_align_backward,
    }.items():
        torch.library.register_fake(f"fastnas::{name}", shape)
