"""The deployed form of a detector: batch norms folded into the convolutions before them, standardised weights fixed."""

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fastnas.models.layers import AddAct, BatchNormAct, Conv2d, DepthwiseConv2d, SameConv2d
from fastnas.ops import fold_standardized

# Exactly these: a convolution that computes its weights in forward cannot take a norm in.
FOLDS = {nn.Conv2d, Conv2d, SameConv2d, DepthwiseConv2d}

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def folded(model: M, dtype: torch.dtype | None = None) -> M:
    """A copy of a detector, or of any block, for inference: it computes the same without the norms that a convolution takes in.

    The model stays as it is, and what is done to it later does not reach the copy. The copy is in eval mode and has no gradients.
    Norms that are not behind one convolution alone stay: of heads that have one for each level, and group norms.

    dtype: of the weights of convolutions and linear layers, to run under autocast to this type, which then need not convert them
        for every batch; None: as they are.
    """
    copied = fold_batch_norms(fold_standardized(model)).eval().requires_grad_(False)
    for layer in copied.modules():
        if dtype is not None and isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(dtype)
    return copied


@torch.no_grad()
def fold_batch_norms(module: M) -> M:
    """Folds every batch norm into the convolution of the same name in `module` (conv1 and norm1, conv and norm), in place.

    The convolutions are replaced, not changed: other modules that hold them too keep them.
    """
    for parent in module.modules():
        for name, conv in list(parent.named_children()):
            norm = getattr(parent, name.replace("conv", "norm"), None)
            if "conv" in name and _can_fold(conv, norm):
                setattr(parent, name, _with_norm(conv, norm))
                rest = AddAct(norm.activation) if isinstance(norm, BatchNormAct) else nn.Identity()
                setattr(parent, name.replace("conv", "norm"), rest)
    return module


def _can_fold(conv: nn.Module, norm: nn.Module | None) -> bool:
    return type(conv) in FOLDS and isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None


def _with_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Both as one convolution, of the type and layout of `conv`. Computed in float64: a folded weight is rounded once."""
    tensors = conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
    weight, bias, mean, variance, scale, shift = (None if tensor is None else tensor.double() for tensor in tensors)
    weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    kind = conv.weight.dtype
    # Found in the memo, the convolution's own weights are not copied.
    fused = copy.deepcopy(conv, {id(conv.weight): nn.Parameter(weight.to(kind), requires_grad=False)})
    fused.bias = nn.Parameter(bias.to(kind), requires_grad=False)
    return fused
