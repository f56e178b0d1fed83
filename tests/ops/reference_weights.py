"""Weight standardisation in float64 and plain steps, written to be read."""

import torch
from torch import Tensor


def standardize(
    weight: Tensor, convention: str, eps: float | None = None, gain: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """[O, I, kh, kw]; differentiable by autograd for filters of two weights and more."""
    filters = weight.double().flatten(1)
    distance = filters - filters.mean(1, keepdim=True)
    squares = distance.square().sum(1, keepdim=True)
    size = filters.shape[1]
    if size == 1:
        standard = distance * 0  # its own mean
    elif convention == "timm":
        standard = distance / torch.sqrt(squares / size + (1e-6 if eps is None else eps))
    else:
        standard = distance / (torch.sqrt(squares / (size - 1)) + (1e-5 if eps is None else eps))
    factor = scale if gain is None else gain.double().reshape(-1, 1) * scale
    return (standard * factor).reshape(weight.shape)


def qiao_conv2d_weight(weight: Tensor) -> Tensor:
    """The lines of the authors' repository (WeightStandardization, layers.py), as they stand there."""
    weight_mean = weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
    weight = weight - weight_mean
    std = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
    return weight / std.expand_as(weight)


def poisoned(run):
    """run() with memory that is filled with NaN before an operator gets it."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all(), "this torch does not fill new memory"
        return run()
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
