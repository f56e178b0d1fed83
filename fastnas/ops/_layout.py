"""The layout rule of all operators on maps [N, C, H, W], and the type of their sums; csrc/tensor.h and csrc/group_norm.h have the
same for the kernels.

A result is channels-last where the channels of the (first) input are innermost, else contiguous.
"""

import torch
from torch import Tensor


def is_channels_last(features: Tensor) -> bool:
    return features.size(1) > 1 and features.stride(1) == 1


def layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def empty_like_layout(like: Tensor, size: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """An empty map in the layout that an operator gives to results of `like`."""
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=layout(is_channels_last(like)))


def as_map(values: Tensor) -> Tensor:
    """[N, C, ...] as [N, C, P, 1]; a view for every layout in which the pixels are one run."""
    return values[:, :, None, None] if values.dim() == 2 else values.flatten(2).unsqueeze(-1)


def sum_type(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32
