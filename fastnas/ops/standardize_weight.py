"""Weight standardisation (Qiao et al. 2019, arXiv 1903.10520), of one convolution or of all of a model in one call.

Every filter gets zero mean and unit variance. Two conventions exist, and checkpoints fit only the one they were trained with:
    "timm"   (w - mean) / sqrt(biased variance + eps), eps 1e-6: timm's StdConv2d and ScaledStdConv2d, BiT, NFNets
    "paper"  (w - mean) / (unbiased standard deviation + eps), eps 1e-5: the authors' repository
Kernels: csrc/cpu/standardize_weight.cpp, csrc/cuda/standardize_weight.cu; formulas: csrc/standardize_weight.h.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastnas.errors import InputError
from fastnas.ops._layout import is_channels_last, layout
from fastnas.ops._library import register_fake, require_library

CONVENTIONS = {"timm": (False, 1e-6), "paper": (True, 1e-5)}  # unbiased, eps


def standardize_weight(
    weight: Tensor,
    gain: Tensor | None = None,
    eps: float | None = None,
    convention: str = "timm",
    dtype: torch.dtype | None = None,
    *,
    scale: float = 1.0,
    channels_last: bool | None = None,
) -> Tensor:
    """The weight with filters of zero mean and unit variance, times gain * scale.

    Args:
        weight: [O, I, kh, kw], fp32, fp64 (CPU only), fp16 or bf16, any layout; computed in fp32 (fp64 for fp64). A filter of
            one weight (I * kh * kw = 1) equals its mean: the result and its gradient are 0.
        gain: O factors, one per filter, of any shape; differentiable.
        eps: keeps the division finite; None: what the convention says.
        convention: "timm" or "paper", see above.
        dtype: of the result; None: the weight's.
        scale: a constant factor beside the gain; ScaledStdConv2d has gamma / sqrt(I * kh * kw).
        channels_last: layout of the result; None: channels-last where the weight is.

    Returns:
        [O, I, kh, kw]. Cast and layout cost nothing extra. Forward and backward pass are deterministic.

    Raises:
        InputError: an unknown convention. RuntimeError: wrong shapes or types. FastnasError: the operators are not built.
    """
    gains = None if gain is None else [gain]
    last = None if channels_last is None else [channels_last]
    return standardize_weights([weight], gains, eps, convention, dtype, scales=[scale], channels_last=last)[0]


def standardize_weights(
    weights: Sequence[Tensor],
    gains: Sequence[Tensor | None] | None = None,
    eps: float | None = None,
    convention: str = "timm",
    dtype: torch.dtype | None = None,
    *,
    scales: Sequence[float] | None = None,
    channels_last: Sequence[bool] | bool | None = None,
) -> list[Tensor]:
    """`standardize_weight` of many weights: one operator call, on the GPU one launch, forward and backward.

    Args:
        weights: any number; those of one device and type, all with or all without a gain, share a call.
        gains, scales, channels_last: one for each weight, or None (no gains, 1, the layout of each weight); one `channels_last`
            may serve all.
        eps, convention, dtype: for all, as for `standardize_weight`.

    Returns:
        One result per weight, in order.
    """
    require_library()
    if convention not in CONVENTIONS:
        raise InputError(f"convention: expected {' or '.join(map(repr, CONVENTIONS))}, got {convention!r}")
    unbiased, default_eps = CONVENTIONS[convention]
    count = len(weights)
    gains = [None] * count if gains is None else gains
    scales = [1.0] * count if scales is None else scales
    if channels_last is None:
        channels_last = [weight.dim() == 4 and is_channels_last(weight) for weight in weights]
    elif isinstance(channels_last, bool):
        channels_last = [channels_last] * count
    for name, given in (("gains", gains), ("scales", scales), ("channels_last", channels_last)):
        if len(given) != count:
            raise InputError(f"{name}: expected one for each of {count} weights, got {len(given)}")
    groups: dict[tuple, list[int]] = {}
    for i, weight in enumerate(weights):
        groups.setdefault((weight.device, weight.dtype, gains[i] is None), []).append(i)
    results: list[Tensor] = list(weights)
    for (_, weight_dtype, gainless), members in groups.items():
        call = _Call(
            tuple(float(scales[i]) for i in members),
            tuple(channels_last[i] for i in members),
            default_eps if eps is None else float(eps),
            unbiased,
            weight_dtype if dtype is None else dtype,
        )
        made = _standardize([weights[i] for i in members], [] if gainless else [gains[i] for i in members], call)
        for i, result in zip(members, made, strict=True):
            results[i] = result
    return results


class _Call(NamedTuple):
    """Everything of a call that is not a tensor, in the order of the operator's arguments."""

    scales: tuple[float, ...]
    channels_last: tuple[bool, ...]
    eps: float
    unbiased: bool
    dtype: torch.dtype


def _standardize(weights: list[Tensor], gains: list[Tensor], call: _Call) -> Sequence[Tensor]:
    # The autograd function stands outside the operator, so inference does not pay for it.
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*weights, *gains)):
        return _Standardize.apply(call, *weights, *gains)
    return torch.ops.fastnas.standardize_weights.default(weights, gains, *call)[0]


class _Standardize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(call.scales)
        results, stats = torch.ops.fastnas.standardize_weights.default(list(tensors[:count]), list(tensors[count:]), *call)
        ctx.save_for_backward(stats, *tensors)  # not the results: they are recomputed from the weights
        ctx.set_materialize_grads(False)
        ctx.scales = call.scales
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        stats, *tensors = ctx.saved_tensors
        count = len(ctx.scales)
        weights, gains = tensors[:count], tensors[count:]
        needs = ctx.needs_input_grad[1:]
        # A layer that took no part in the loss gets no gradient, rather than one of zeros that an optimiser would act on.
        wanted = [i for i in range(count) if grads[i] is not None and (needs[i] or (gains and needs[count + i]))]
        result: list[Tensor | None] = [None] * len(tensors)
        if wanted:
            of_weights, of_gains = standardize_weights_backward(grads, weights, gains, ctx.scales, stats, wanted)
            for place, i in enumerate(wanted):
                result[i] = of_weights[place] if needs[i] else None
                if gains:
                    result[count + i] = of_gains[place] if needs[count + i] else None
        return None, *result


def standardize_weights_backward(
    grads: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    gains: Sequence[Tensor],
    scales: Sequence[float],
    stats: Tensor,
    wanted: Sequence[int],
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of weights `wanted` and of their gains, from those of the results and the statistics of the forward call."""
    first_rows = list(accumulate((weight.size(0) for weight in weights), initial=0))
    some_gains = [gains[i] for i in wanted] if gains else []
    return torch.ops.fastnas.standardize_weights_backward.default(
        [grads[i] for i in wanted],
        [weights[i] for i in wanted],
        some_gains,
        [scales[i] for i in wanted],
        stats,
        [first_rows[i] for i in wanted],
    )


def _stats_dtype(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in (a, b) else torch.float32


@register_fake("standardize_weights")
def _standardize_weights_shapes(
    weights: list[Tensor],
    gains: list[Tensor],
    scales: list[float],
    channels_last: list[bool],
    eps: float,
    unbiased: bool,
    dtype: torch.dtype,
) -> tuple[list[Tensor], Tensor]:
    rows = sum(weight.size(0) for weight in weights)
    stats = weights[0].new_empty((3, rows), dtype=_stats_dtype(weights[0].dtype, dtype))
    results = [
        torch.empty(weight.shape, dtype=dtype, device=weight.device, memory_format=layout(last))
        for weight, last in zip(weights, channels_last, strict=True)
    ]
    return results, stats


@register_fake("standardize_weights_backward")
def _standardize_weights_backward_shapes(
    grads: list[Tensor],
    weights: list[Tensor],
    gains: list[Tensor],
    scales: list[float],
    stats: Tensor,
    first_rows: list[int],
) -> tuple[list[Tensor], list[Tensor]]:
    of_weights = [
        torch.empty(weight.shape, dtype=weight.dtype, device=weight.device, memory_format=layout(is_channels_last(weight)))
        for weight in weights
    ]
    return of_weights, [torch.empty(gain.shape, dtype=gain.dtype, device=gain.device) for gain in gains]
