"""Inputs of the tests of group_norm_act and batch_norm_act, and the comparison of results and gradients with float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fastnas import ops
from tests.ops import reference_norm as reference

LAYOUTS = [torch.contiguous_format, torch.channels_last]
ACTIVATIONS = ["none", "relu", "silu"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
# Rounding of the type itself; sums are fp32 (fp64 for fp64).
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def random(*shape: int, seed: int = 0, dtype=torch.float64, layout=torch.contiguous_format, device="cpu") -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)
    return values.contiguous(memory_format=layout) if len(shape) == 4 else values


def arguments(shape, dtype=torch.float64, layout=torch.contiguous_format, residual=False, device="cpu", params=None):
    """input, weight, bias, residual that require gradients."""
    params = params or (torch.float64 if dtype == torch.float64 else torch.float32)
    channels = shape[1]
    values = [
        random(*shape, seed=1, dtype=dtype, layout=layout, device=device) * 2 + 3,
        random(channels, seed=2, dtype=params, device=device),
        random(channels, seed=3, dtype=params, device=device),
        random(*shape, seed=4, dtype=dtype, layout=layout, device=device) if residual else None,
    ]
    return [None if value is None else value.detach().requires_grad_() for value in values]


def in_float64(values):
    return [None if value is None else value.detach().double().cpu().requires_grad_() for value in values]


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Within `tolerance` of the largest value: sums over many pixels cannot be right to the last bit of a small one."""
    scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual.double().cpu(), expected.double(), rtol=tolerance, atol=tolerance * (1 + scale))


def compare(values, groups, activation, layout=torch.contiguous_format, expected_of=reference.group_norm_act, eps=1e-5):
    """Result and all gradients of group_norm_act against float64."""

    def run(norm, input, weight, bias, residual):
        return norm(input, groups, weight, bias, eps, activation, residual)

    compare_runs(values, partial(run, ops.group_norm_act), partial(run, expected_of), layout)


def compare_runs(values, own_run, expected_run, layout=torch.contiguous_format):
    """own_run, expected_run: (input, weight, bias, residual) -> result; the second is given float64."""
    input, wide = values[0], in_float64(values)
    out, expected = own_run(*values), expected_run(*wide)
    tolerance = TOLERANCE[input.dtype]
    assert out.dtype == input.dtype and out.shape == input.shape
    assert_near(out, expected, tolerance)
    gradient = random(*expected.shape, seed=9, dtype=input.dtype, layout=layout, device=str(input.device))
    out.backward(gradient)
    expected.backward(gradient.double().cpu())
    for own, other in zip(values, wide, strict=True):
        if own is not None:
            assert own.grad.dtype == own.dtype
            assert_near(own.grad, other.grad, tolerance)


def torch_group_norm(input, groups, weight, bias, eps, activation, residual):
    values = F.group_norm(input, groups, weight, bias, eps)
    values = values if residual is None else values + residual
    return {"none": lambda v: v, "relu": F.relu, "silu": F.silu}[activation](values)
