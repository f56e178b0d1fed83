"""Normalisation in float64 and plain loops, written to be read, not to be fast."""

import torch
from torch import Tensor


def activate(values: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return torch.where(values < 0, 0.0, values)
    if activation == "silu":
        return values / (1 + torch.exp(-values))
    return values


def group_norm_act(
    input: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Group Normalization, Wu & He 2018, equations 1 to 7, one group of one image at a time; differentiable by autograd."""
    images = []
    for image in input.double():
        normalised = []
        for group in image.chunk(groups):
            mean = group.mean()
            variance = ((group - mean) ** 2).mean()
            normalised.append((group - mean) / (variance + eps).sqrt())
        images.append(torch.cat(normalised))
    values = torch.stack(images)
    per_channel = (-1,) + (1,) * (input.dim() - 2)
    if weight is not None:
        values = values * weight.double().reshape(per_channel)
    if bias is not None:
        values = values + bias.double().reshape(per_channel)
    if residual is not None:
        values = values + residual.double()
    return activate(values, activation)
