"""Weighted fusion of a BiFPN node (EfficientDet, Tan et al. 2020, section 3.3): resampling, weighting and activation in one.

Formulas: csrc/fusion.h. Kernels: csrc/cpu/weighted_fusion.cpp, csrc/cuda/weighted_fusion.cu.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastnas.ops._layout import empty_like_layout
from fastnas.ops._library import register_fake, require_library

Method = Literal["fast", "softmax", "sum"]
Activation = Literal["none", "relu", "silu"]
Padding = Literal["same", "symmetric"]


def weighted_fusion(
    inputs: Sequence[Tensor],
    weights: Tensor | None,
    size: tuple[int, int] | None = None,
    method: Method = "fast",
    activation: Activation = "none",
    eps: float = 1e-4,
    padding: Padding = "same",
) -> Tensor:
    """activation(sum of c_i * input_i), every input brought to the node's size (H, W) on the way.

    An input [N, C, h, w] of the node's size is taken as it is. One of half the size (2h - 1, 2h or 2h + 1 rows, columns
    alike) goes up by nearest neighbour, as `F.interpolate(input, size)`; one of double the size (H = ceil(h / 2)) goes
    down by a 3x3 max-pool of stride 2. Other sizes are refused.

    Args:
        inputs: two or three maps, fp32, fp64 (CPU), fp16 or bf16, any layout; channels-last is the fast one. Maps of
            another type than the node's are converted first.
        weights: [len(inputs)], one per input, any floating type, computed in fp32 (fp64 for fp64 maps) inside the kernel.
            "sum" does not read them: None will do, and they get no gradient.
        size: the node's (H, W); None: that of the first input.
        method: shares c_i: "fast" relu(w_i) / (eps + sum of relu(w)), "softmax" of w, "sum" 1.
        activation: applied to the sum.
        padding: of the pooling. "same": TensorFlow's, where even sizes are padded behind only (EfficientDet); "symmetric":
            torch's padding=1. Padding never wins. Among equal maxima the gradient goes to the first, as in torch.

    Returns:
        [N, C, H, W]. Type and layout (channels-last or contiguous) are those of the first input that has the node's size,
        or of the first input where none has. So are the gradients' layouts. Sums are fp32 (fp64 for fp64). Deterministic in
        both directions; the backward pass saves nothing but the inputs and cannot itself be differentiated.

    Raises:
        RuntimeError: an argument that does not fit, named. FastnasError: the operators are not built.
    """
    require_library()
    height, width = _size(inputs, size)
    like = _like(inputs, height, width)
    inputs = [level if level.dtype == like.dtype else level.to(like.dtype) for level in inputs]
    node = _Node([height, width], method, activation, padding, eps)
    if method == "sum":
        weights = None
    # The autograd function stands outside the operator, so inference does not pay for it.
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, weights) if tensor is not None):
        return _WeightedFusion.apply(node, weights, *inputs)
    return torch.ops.fastnas.weighted_fusion.default(inputs, weights, *node)


class WeightedFusion(nn.Module):
    """`weighted_fusion` with its own weights, all ones at first; `forward(inputs, size=None)`.

    Args:
        inputs: how many maps come together, two or three.
        method, activation, eps, padding: as for `weighted_fusion`. "sum" has no weights.
    """

    def __init__(
        self,
        inputs: int,
        method: Method = "fast",
        activation: Activation = "none",
        eps: float = 1e-4,
        padding: Padding = "same",
    ) -> None:
        super().__init__()
        self.inputs, self.method, self.activation, self.eps, self.padding = inputs, method, activation, eps, padding
        self.weights = None if method == "sum" else nn.Parameter(torch.ones(inputs))

    def forward(self, inputs: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        return weighted_fusion(inputs, self.weights, size, self.method, self.activation, self.eps, self.padding)

    def extra_repr(self) -> str:
        return f"{self.inputs}, method={self.method!r}, activation={self.activation!r}, padding={self.padding!r}"


class _Node(NamedTuple):
    """Everything of a call that is not a tensor, in the order of the operator's arguments."""

    size: list[int]
    method: str
    activation: str
    padding: str
    eps: float


def _size(inputs: Sequence[Tensor], size: Sequence[int] | None) -> tuple[int, int]:
    """The node's (H, W). Here rather than in the operator is refused what cannot be passed to it."""
    if not inputs or any(level.dim() < 2 for level in inputs):
        raise RuntimeError(f"inputs: expected two or three maps [N, C, h, w], got {[list(level.shape) for level in inputs]}")
    if size is None:
        return inputs[0].size(-2), inputs[0].size(-1)
    if not isinstance(size, Sequence) or len(size) != 2:
        raise RuntimeError(f"size: expected (height, width), got {size!r}")
    return size[0], size[1]


def _like(inputs: Sequence[Tensor], height: int, width: int) -> Tensor:
    """The input whose type and layout the node has; csrc/fusion_node.h has the same rule."""
    for level in inputs:
        if level.shape[-2] == height and level.shape[-1] == width:
            return level
    return inputs[0]


class _WeightedFusion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, node: _Node, weights: Tensor | None, *inputs: Tensor) -> Tensor:
        ctx.node = node
        ctx.save_for_backward(weights, *inputs)
        return torch.ops.fastnas.weighted_fusion.default(list(inputs), weights, *node)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *inputs = ctx.saved_tensors
        gradients = torch.ops.fastnas.weighted_fusion_backward.default(grad, inputs, weights, *ctx.node)
        return None, None if weights is None else gradients[-1], *gradients[: len(inputs)]


@register_fake("weighted_fusion")
def _weighted_fusion_shapes(
    inputs: list[Tensor], weights: Tensor | None, size: list[int], method: str, activation: str, padding: str, eps: float
) -> Tensor:
    like = _like(inputs, *size)
    return empty_like_layout(like, (like.size(0), like.size(1), *size))


@register_fake("weighted_fusion_backward")
def _weighted_fusion_backward_shapes(
    grad: Tensor,
    inputs: list[Tensor],
    weights: Tensor | None,
    size: list[int],
    method: str,
    activation: str,
    padding: str,
    eps: float,
) -> list[Tensor]:
    like = _like(inputs, *size)
    gradients = [empty_like_layout(like, tuple(level.shape)) for level in inputs]
    if method != "sum" and weights is not None:
        gradients.append(torch.empty_like(weights, memory_format=torch.contiguous_format))
    return gradients
