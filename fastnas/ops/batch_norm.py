"""Batch Normalization (Ioffe & Szegedy 2015), residual addition and activation in one call.

Kernels: csrc/cpu/batch_norm*.cpp. The backward pass computes the input of the activation again, or reads its sign off the result,
so that nothing but the input is kept for it, and behind an activation with a residual the residual (silu) or the result (relu,
relu6: what reads the result keeps it anyway).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastnas.ops._layout import as_map, empty_gradients, empty_like_layout, is_channels_last, sum_type
from fastnas.ops._library import register_fake, require_library


def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    residual: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """activation(batch_norm(input) * weight + bias + residual), each channel with its own mean and (biased) variance.

    Args:
        input: [N, C, ...], fp32, fp64, fp16 or bf16. Both channels-last and contiguous maps are read as they lie; channels-last is
            the fast layout.
        running_mean, running_var: [C] of any floating type. In training moved by `momentum` towards the mean and the unbiased
            variance of the batch, in place; they may be None then. Else they are the statistics.
        weight, bias: [C] of any floating type, or None for 1 and 0.
        training: whether the statistics are those of the batch.
        momentum: the share of the batch in the new running statistics.
        eps: added to the variance.
        activation: "none", "relu", "relu6" or "silu".
        residual: of the shape of `input`, of any floating type and layout, added before the activation.
        inplace: that the result may be written over `input`, where nothing needs a gradient and `training` is False: a large map of
            its own costs more than the arithmetic.

    Returns:
        In the shape and type of `input`; channels-last where its channels are innermost, else contiguous. Sums are fp32 or
        wider whatever the types are, and the variance does not suffer from a large mean. Forward and backward are deterministic,
        whatever the number of threads. An empty batch leaves the running statistics alone.
        On other devices than the CPU this is torch's batch norm (cuDNN's on a GPU), addition and activation, one after the other.

    Raises:
        RuntimeError: wrong shapes, types, devices or activation; no running statistics where not in training.
        ValueError: a single value per channel in training, as in torch.
        FastnasError: the operators are not built.
    """
    if input.dim() < 2:
        raise RuntimeError(f"input: expected [N, C, ...], got {list(input.shape)}")
    if residual is not None and residual.shape != input.shape:
        raise RuntimeError(f"residual: expected {list(input.shape)} like input, got {list(residual.shape)}")
    if not training and (running_mean is None or running_var is None):
        raise RuntimeError("running_mean, running_var: expected both where training is False, got None")
    if training and input.numel() == input.size(1) > 0:
        raise ValueError(f"input: expected more than one value per channel in training, got {list(input.shape)}")
    if input.device.type != "cpu":
        return _composed(
            input, running_mean, running_var, weight, bias, training, momentum, eps, activation, residual
        )
    require_library()
    if inplace and not training and not _needs_gradient(input, weight, bias, residual) and _has_no_gaps(input):
        torch.ops.fastnas.batch_norm_act_.default(
            input, running_mean, running_var, weight, bias, eps, activation, residual
        )
        return input
    map_of = _unchanged if input.dim() == 4 else as_map
    given = (None, None) if training else (running_mean, running_var)
    added = None if residual is None else map_of(residual)
    out, mean, var = _map_norm(map_of(input), *given, weight, bias, added, eps, activation)
    if training and input.numel() > 0:
        _follow("running_mean", running_mean, mean, momentum)
        _follow("running_var", running_var, var, momentum)
    return out if input.dim() == 4 else out.reshape(input.shape)


class BatchNormAct(nn.BatchNorm2d):
    """`batch_norm_act` with learned weight and bias; parameters, buffers and state dict are those of `nn.BatchNorm2d`.

    inplace: for a norm that alone reads its input, as behind a convolution.

    forward(input, residual=None): as for `batch_norm_act`, input [N, C, H, W].
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        activation: str = "none",
        inplace: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.activation, self.inplace = activation, inplace

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        moves = self.training and self.track_running_stats and self.num_batches_tracked is not None
        momentum = self.momentum
        if moves:
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if momentum is None else momentum
        of_batch = self.training or self.running_mean is None
        running = (self.running_mean, self.running_var) if moves or not of_batch else (None, None)
        return batch_norm_act(
            input, *running, self.weight, self.bias, of_batch, momentum or 0.0, self.eps, self.activation, residual, self.inplace
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"


IN_PLACE = {  # for a map that nothing else reads
    "none": lambda values: values,
    "relu": lambda values: F.relu(values, inplace=True),
    "relu6": lambda values: F.relu6(values, inplace=True),
    "silu": lambda values: F.silu(values, inplace=True),
}


def _composed(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    if activation not in IN_PLACE:
        raise RuntimeError(f"activation: expected none, relu, relu6 or silu, got {activation}")
    values = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return IN_PLACE[activation](values if residual is None else values.add_(residual))


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _has_no_gaps(input: Tensor) -> bool:
    return input.dim() == 4 and (
        input.is_contiguous(memory_format=torch.channels_last) if is_channels_last(input) else input.is_contiguous()
    )


def _unchanged(values: Tensor) -> Tensor:
    return values


def _follow(name: str, running: Tensor | None, new: Tensor, momentum: float) -> None:
    """Moves a running statistic towards that of the batch. Outside the operator, which so writes to none of its arguments."""
    if running is None:
        return
    if running.shape != new.shape:
        raise RuntimeError(f"{name}: expected {list(new.shape)}, got {list(running.shape)}")
    running.lerp_(new if new.dtype == running.dtype else new.to(running.dtype), momentum)


def _map_norm(
    input: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, the mean used and, unless it was given, the batch's unbiased variance."""
    # The autograd function stands outside the operator, so inference does not pay for it.
    if _needs_gradient(input, weight, bias, residual):
        return _BatchNormAct.apply(input, weight, bias, residual, mean, var, eps, activation)
    out, mean, _, var = torch.ops.fastnas.batch_norm_act.default(
        input, mean, var, weight, bias, eps, activation, residual
    )
    return out, mean, var


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        given_mean: Tensor | None,
        given_var: Tensor | None,
        eps: float,
        activation: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, mean, rstd, var = torch.ops.fastnas.batch_norm_act.default(
            input, given_mean, given_var, weight, bias, eps, activation, residual
        )
        ctx.frozen, ctx.activation = given_mean is not None, activation
        ctx.residual_dtype = None if residual is None else residual.dtype
        third = None
        if residual is not None and activation != "none":
            third = residual if activation == "silu" else out
        ctx.save_for_backward(input, mean, rstd, weight, bias, third)
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        return out, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        input, mean, rstd, weight, bias, third = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:4])
        residual_grad = None
        if wanted[3] and ctx.activation == "none":
            wanted[3], residual_grad = False, grad.to(ctx.residual_dtype)
        gradients = [None] * 4
        if any(wanted):
            computed = torch.ops.fastnas.batch_norm_act_backward.default(
                grad, input, mean, rstd, weight, bias, ctx.frozen, ctx.activation, third, wanted
            )
            gradients = [value if is_wanted else None for value, is_wanted in zip(computed, wanted, strict=True)]
        if wanted[3]:
            gradients[3] = gradients[3].to(ctx.residual_dtype)  # exact: relu passes a value of the gradient or zero
        if residual_grad is not None:
            gradients[3] = residual_grad
        return *gradients, None, None, None, None


@register_fake("batch_norm_act")
def _batch_norm_act_shapes(
    input: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def per_channel(count: int) -> Tensor:
        return input.new_empty((count,), dtype=sum_type(input))

    channels = input.size(1)
    out = empty_like_layout(input, tuple(input.shape))
    return out, per_channel(channels), per_channel(channels), per_channel(channels if mean is None else 0)


@register_fake("batch_norm_act_backward")
def _batch_norm_act_backward_shapes(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    frozen: bool,
    activation: str,
    third: Tensor | None,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty_gradients(input, weight, bias, third, wanted)


@register_fake("batch_norm_act_")
def _batch_norm_act_in_place(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    residual: Tensor | None,
) -> None:
    pass
