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


def empty_gradients(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the backward pass of a norm gives: gradients of all four, each in its own type and empty where it is not wanted.

    residual: or whatever has its shape and type.
    """
    weight_type, bias_type, residual_type = (input.dtype if like is None else like.dtype for like in (weight, bias, residual))

    def like_map(is_wanted: bool, dtype: torch.dtype) -> Tensor:
        return empty_like_layout(input, tuple(input.shape), dtype) if is_wanted else input.new_empty((0,), dtype=dtype)

    def like_channels(is_wanted: bool, dtype: torch.dtype) -> Tensor:
        return input.new_empty((input.size(1) if is_wanted else 0,), dtype=dtype)

    return (
        like_map(wanted[0], input.dtype),
        like_channels(wanted[1], weight_type),
        like_channels(wanted[2], bias_type),
        like_map(wanted[3], residual_type),
    )
