"""The backward pass of group_norm_act: what it computes, what it keeps, and that it repeats bit by bit."""

import pytest
import torch

from fastnas import ops
from tests.ops.norm_problems import ACTIVATIONS, DEVICES, LAYOUTS, arguments, random

pytestmark = pytest.mark.usefixtures("gpu_if_marked")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation, layout):
    input, weight, bias, residual = arguments((2, 4, 3, 2), torch.float64, layout, True)
    for values in ((input, weight, bias, residual), (input, weight, bias, None), (input, None, None, residual)):
        given_values = [value for value in values if value is not None]

        def run(*args, values=values):
            left = list(args)
            x, w, b, r = (None if value is None else left.pop(0) for value in values)
            return ops.group_norm_act(x, 2, w, b, 1e-3, activation, r)

        assert torch.autograd.gradcheck(run, given_values)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_only_wanted_gradients(activation, device):
    everything = arguments((2, 8, 6, 5), torch.float32, residual=True, device=device)
    out = ops.group_norm_act(everything[0], 2, everything[1], everything[2], 1e-5, activation, everything[3])
    expected = torch.autograd.grad(out.square().sum(), everything)
    for mask in range(1, 16):
        values = [value.detach().requires_grad_(bool(mask >> i & 1)) for i, value in enumerate(everything)]
        out = ops.group_norm_act(values[0], 2, values[1], values[2], 1e-5, activation, values[3])
        out.square().sum().backward()
        for value, gradient in zip(values, expected, strict=True):
            assert (value.grad is not None) == value.requires_grad
            if value.requires_grad:
                torch.testing.assert_close(value.grad, gradient, rtol=1e-5, atol=1e-5)


def test_what_is_kept_for_the_backward_pass():
    kept = []
    for activation, maps in (("none", 1), ("relu", 2)):
        input, weight, bias, residual = arguments((2, 8, 16, 16), torch.float32, residual=True)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            ops.group_norm_act(input, 2, weight, bias, activation=activation, residual=residual)
        assert sum(kept) == maps * input.numel() + 2 * 2 * 2 + 2 * 8  # and mean, rstd, weight, bias


def test_no_gradient_of_gradients_and_none_without_grad_mode():
    input = random(2, 8, 4, 4).requires_grad_()
    with torch.no_grad():
        assert not ops.group_norm_act(input, 2).requires_grad
    (gradient,) = torch.autograd.grad(ops.group_norm_act(input, 2).square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 64, 70, 90), (3, 24, 50, 41)])
def test_the_same_bits_for_any_number_of_threads(shape, layout):
    values = arguments(shape, torch.float32, layout, True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = ops.group_norm_act(values[0], 8, values[1], values[2], 1e-5, "silu", values[3])
            results.append((out, *torch.autograd.grad(out.square().sum(), values)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [(2, 256, 50, 76), (1, 256, 200, 304)])
def test_the_same_bits_twice_on_the_gpu(shape):
    values = arguments(shape, torch.bfloat16, torch.channels_last, True, "cuda")
    results = []
    for _ in range(2):
        out = ops.group_norm_act(values[0], 32, values[1], values[2], 1e-5, "silu", values[3])
        results.append((out, *torch.autograd.grad(out.square().sum(), values)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.cuda
def test_in_a_cuda_graph():
    values = arguments((2, 64, 20, 30), torch.bfloat16, torch.channels_last, False, "cuda")
    expected = ops.group_norm_act(*values[:1], 8, *values[1:3], activation="relu").detach()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = ops.group_norm_act(*values[:1], 8, *values[1:3], activation="relu")
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)
