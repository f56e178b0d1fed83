"""The type in which a convolution computes: what `torch.autocast` would cast its input to."""

import torch
from torch import Tensor


def convolution_type(input: Tensor) -> torch.dtype:
    kind = input.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # maps on the meta device have none
    if autocast and input.is_floating_point() and input.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return input.dtype


def cast(values: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if values is None else values.to(dtype)
