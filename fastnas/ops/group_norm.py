"""Group Normalization (Wu & He 2018), residual addition and activation in one call.

Kernels: csrc/cpu/group_norm*.cpp, csrc/cuda/group_norm*.cu. The backward pass computes the input of the activation again, so
that nothing but the input (and the residual behind an activation) is kept for it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastnas.ops._layout import as_map, empty_gradients, empty_like_layout, sum_type
from fastnas.ops._library import register_fake, require_library


def group_norm_act(
    input: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """activation(group_norm(input) * weight + bias + residual), each group of channels of an image with its own mean and
    (biased) variance.

    Args:
        input: [N, C, ...], fp32, fp64 (CPU only), fp16 or bf16. Both channels-last and contiguous maps are read as they lie;
            channels-last is the fast layout.
        groups: number of groups; divides C.
        weight, bias: [C] of any floating type, or None for 1 and 0.
        eps: added to the variance.
        activation: "none", "relu" or "silu".
        residual: of the shape of `input`, of any floating type and layout, added before the activation.

    Returns:
        In the shape and type of `input`; channels-last where its channels are innermost, else contiguous. Sums are fp32 or
        wider whatever the types are. Forward and backward are deterministic. Unlike torch, a group may be a single value
        (its result is `bias`).

    Raises:
        RuntimeError: wrong shapes, types, devices, groups or activation.
        FastnasError: the operators are not built.
    """
    require_library()
    if input.dim() == 4:
        return _map_norm(input, groups, weight, bias, eps, activation, residual)
    if input.dim() < 2:
        raise RuntimeError(f"input: expected [N, C, ...], got {list(input.shape)}")
    if residual is not None and residual.shape != input.shape:
        raise RuntimeError(f"residual: expected {list(input.shape)} like input, got {list(residual.shape)}")
    added = None if residual is None else as_map(residual)
    return _map_norm(as_map(input), groups, weight, bias, eps, activation, added).reshape(input.shape)


class GroupNormAct(nn.GroupNorm):
    """`group_norm_act` with learned weight and bias; parameters and state dict are those of `nn.GroupNorm`.

    forward(input, residual=None): as for `group_norm_act`.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        activation: str = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_groups, num_channels, eps, affine, device=device, dtype=dtype)
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return group_norm_act(input, self.num_groups, self.weight, self.bias, self.eps, self.activation, residual)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"


def _map_norm(
    input: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    # The autograd function stands outside the operator, so inference does not pay for it.
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, weight, bias, residual)):
        return _GroupNormAct.apply(input, weight, bias, residual, groups, eps, activation)
    return torch.ops.fastnas.group_norm_act.default(input, groups, weight, bias, eps, activation, residual)[0]


class _GroupNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        groups: int,
        eps: float,
        activation: str,
    ) -> Tensor:
        out, mean, rstd = torch.ops.fastnas.group_norm_act.default(
            input, groups, weight, bias, eps, activation, residual
        )
        ctx.groups, ctx.activation = groups, activation
        ctx.residual_dtype = None if residual is None else residual.dtype
        ctx.save_for_backward(input, mean, rstd, weight, bias, None if activation == "none" else residual)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, mean, rstd, weight, bias, residual = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:4])
        residual_grad = None
        if wanted[3] and ctx.activation == "none":
            wanted[3], residual_grad = False, grad.to(ctx.residual_dtype)
        gradients = [None] * 4
        if any(wanted):
            computed = torch.ops.fastnas.group_norm_act_backward.default(
                grad, input, mean, rstd, ctx.groups, weight, bias, ctx.activation, residual, wanted
            )
            gradients = [value if is_wanted else None for value, is_wanted in zip(computed, wanted, strict=True)]
        if residual_grad is not None:
            gradients[3] = residual_grad
        return *gradients, None, None, None


@register_fake("group_norm_act")
def _group_norm_act_shapes(
    input: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    def statistics() -> Tensor:
        return input.new_empty((input.size(0), groups), dtype=sum_type(input))

    return empty_like_layout(input, tuple(input.shape)), statistics(), statistics()


@register_fake("group_norm_act_backward")
def _group_norm_act_backward_shapes(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty_gradients(input, weight, bias, residual, wanted)
