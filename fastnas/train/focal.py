"""Focal loss (Lin et al. 2017, equation 5), as memory-thrifty as one-stage detectors need it."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum of the sigmoid focal loss. logits (..., classes); labels (...): class from 0, -1 none of them, -2 left out."""
    positive = (labels >= 0).nonzero(as_tuple=True)
    right = logits[(*positive, labels[positive])]
    hits = (alpha * torch.sigmoid(-right) ** gamma * F.softplus(-right)).sum()
    # Nearly all entries are negatives: they are summed as if all were, and the few that are not are taken out again.
    left_out = _negatives(logits[labels == -2], alpha, gamma) + _negatives(right, alpha, gamma)
    return hits - left_out + _Negatives.apply(logits, alpha, gamma)


def _negatives(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    return ((1 - alpha) * torch.sigmoid(logits) ** gamma * F.softplus(logits)).sum()


class _Negatives(torch.autograd.Function):
    """`_negatives`, keeping one tensor of the size of the logits for backward instead of the five that autograd would."""

    @staticmethod
    def forward(ctx, logits: Tensor, alpha: float, gamma: float) -> Tensor:
        probability, cross_entropy = logits.sigmoid(), F.softplus(logits)
        factor = probability**gamma
        if ctx.needs_input_grad[0]:
            slope = (1 - probability).mul_(cross_entropy).mul_(gamma).add_(probability)
            ctx.save_for_backward(slope.mul_(factor).mul_(1 - alpha))
        return (1 - alpha) * cross_entropy.mul_(factor).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (slope,) = ctx.saved_tensors
        return slope * grad, None, None
