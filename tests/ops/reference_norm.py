"""Normalisation in float64 and plain loops, written to be read, not to be fast."""

import torch
from torch import Tensor


def activate(values: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return torch.where(values < 0, 0.0, values)
    if activation == "relu6":
        return torch.where(values < 0, 0.0, torch.where(values > 6, 6.0, values))
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
    return activate(affine(values, weight, bias, residual), activation)


def affine(values: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    per_channel = (-1,) + (1,) * (values.dim() - 2)
    if weight is not None:
        values = values * weight.double().reshape(per_channel)
    if bias is not None:
        values = values + bias.double().reshape(per_channel)
    return values if residual is None else values + residual.double()


def batch_norm_act(
    input: Tensor,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Batch Normalization, Ioffe & Szegedy 2015, algorithm 1 (with `mean` and `var`: algorithm 2), one channel at a time."""
    normalised = []
    for index, channel in enumerate(input.double().unbind(1)):
        centre = channel.mean() if mean is None else mean[index].double()
        variance = ((channel - centre) ** 2).mean() if var is None else var[index].double()
        normalised.append((channel - centre) / (variance + eps).sqrt())
    return activate(affine(torch.stack(normalised, 1), weight, bias, residual), activation)
