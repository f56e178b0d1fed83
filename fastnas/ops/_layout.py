"""The layout rule of all operators on maps [N, C, H, W]; csrc/tensor.h has the same for the kernels.

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
