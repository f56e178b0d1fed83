"""batch_norm_act against torch's batch_norm and against the slow reference: values, running statistics, types, layouts."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from fastnas import ops
from fastnas.ops.batch_norm import IN_PLACE
from tests.ops import reference_norm as reference
from tests.ops.norm_problems import DEVICES, LAYOUTS, arguments, assert_near, compare_runs, in_float64, random

pytestmark = pytest.mark.usefixtures("gpu_if_marked")

ACTIVATIONS = ["none", "relu", "relu6", "silu"]


def own(input, weight, bias, residual, statistics=None, eps=1e-5, activation="none"):
    running = statistics or (None, None)
    return ops.batch_norm_act(input, *running, weight, bias, statistics is None, 0.1, eps, activation, residual)


def slow(input, weight, bias, residual, statistics=None, eps=1e-5, activation="none"):
    mean, var = statistics or (None, None)
    return reference.batch_norm_act(input, mean, var, weight, bias, eps, activation, residual)


def by_torch(input, weight, bias, residual, statistics=None, eps=1e-5, activation="none"):
    mean, var = statistics or (None, None)
    values = F.batch_norm(input, mean, var, weight, bias, statistics is None, 0.1, eps)
    return IN_PLACE[activation](values if residual is None else values + residual)


def compare(values, layout=torch.contiguous_format, expected=slow, **options):
    """With the batch's and with given statistics."""
    compare_runs(values, partial(own, **options), partial(expected, **options), layout)
    for value in values:
        if value is not None:
            value.grad = None
    statistics = given_statistics(values[0])
    wide = tuple(value.double().cpu() for value in statistics)
    compare_runs(
        values, partial(own, statistics=statistics, **options), partial(expected, statistics=wide, **options), layout
    )


def given_statistics(input):
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    mean, var = (random(input.size(1), seed=seed, dtype=dtype, device=str(input.device)) for seed in (6, 7))
    return mean + 2, var.abs() + 0.5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_equals_the_reference(dtype, residual, activation, layout, device):
    if dtype == torch.float64 and device == "cuda":
        pytest.skip("fp64 is for the CPU")
    values = arguments((2, 12, 7, 9), dtype, layout, residual, device)
    if activation == "relu6":  # that both bends are met
        values[1] = (values[1].detach() * 4).requires_grad_()
    compare(values, layout, activation=activation)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 32, 20, 19),
        (1, 64, 13, 21),
        (2, 256, 25, 38),  # several slices
        (1, 10, 33, 31),  # no multiple of any vector
        (64, 48, 7, 7),  # small images that are one
        (40, 96, 1, 1),
        (2, 1, 70, 101),
        (3, 2048, 4, 6),
        (1, 7, 1, 300),
    ],
)
def test_equals_torch(shape, dtype, layout):
    for activation, residual in (("silu", False), ("relu", True)):
        compare(arguments(shape, dtype, layout, residual), layout, by_torch, activation=activation)


@given(
    st.integers(1, 3), st.integers(1, 20), st.integers(1, 9), st.integers(1, 40),
    st.sampled_from(ACTIVATIONS), st.booleans(), st.booleans(), st.sampled_from(LAYOUTS),
)
def test_any_shape(images, channels, height, width, activation, affine, residual, layout):
    assume(images * height * width > 1)
    values = arguments((images, channels, height, width), torch.float64, layout, residual)
    if not affine:
        values[1] = values[2] = None
    compare(values, layout, activation=activation, eps=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean", [1e3, -3e4])
def test_large_means_lose_nothing_but_the_input_s_rounding(mean, layout):
    # E[x^2] - E[x]^2 in fp32 would leave no correct digit here.
    input = (random(3, 16, 40, 41) + mean).float().contiguous(memory_format=layout)
    running = [torch.zeros(16), torch.ones(16)]
    out = ops.batch_norm_act(input, *running, training=True, momentum=1.0)
    assert (out - reference.batch_norm_act(input)).abs().max() < 4 * abs(mean) * 2**-24 + 1e-5
    torch.testing.assert_close(running[1], input.double().var((0, 2, 3)).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_far_value_does_not_spoil_the_variance(layout):
    input = random(2, 8, 40, 50, dtype=torch.float32)
    input[0, :, 0, 0] = 1e5  # the first value, from which deviations are measured first
    input = input.contiguous(memory_format=layout)
    out = ops.batch_norm_act(input, None, None, training=True)
    assert_near(out, reference.batch_norm_act(input), 1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bad_numbers_behave_as_in_torch(activation, layout):
    for bad in (float("nan"), float("inf"), -float("inf")):
        input = random(2, 6, 5, 7, dtype=torch.float32, layout=layout)
        input[1, 2, 3, 4] = bad
        residual = random(2, 6, 5, 7, seed=5, dtype=torch.float32, layout=layout)
        residual[0, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        values = (input.requires_grad_(), None, None, residual.requires_grad_())
        out, expected = (run(*values, activation=activation) for run in (own, by_torch))
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
        if activation in ("silu", "relu6"):
            continue  # torch's own derivative of silu at infinity depends on the device, that of relu6 at NaN is zero, ours NaN
        gradients = [torch.autograd.grad(result.sum(), (input, residual)) for result in (out, expected)]
        for mine, other in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5, equal_nan=True)


# ----------------------------------------------------------------------------------------------------------------------
# Running statistics


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_running_statistics_follow_the_batch_as_torch_s(dtype, layout, device):
    input = (random(3, 20, 11, 13, dtype=dtype, layout=layout, device=device) * 3 + 1).requires_grad_()
    mine, other = ([torch.zeros(20, device=device), torch.ones(20, device=device)] for _ in range(2))
    for momentum in (0.1, 0.01, 1.0, 0.0):
        ops.batch_norm_act(input, *mine, training=True, momentum=momentum)
        F.batch_norm(input.float(), *other, training=True, momentum=momentum)
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_running_statistics_are_still_where_they_are_used_or_the_batch_is_empty():
    input = random(2, 8, 5, 5, dtype=torch.float32)
    running = [random(8, dtype=torch.float32), random(8, dtype=torch.float32).abs()]
    before = [value.clone() for value in running]
    ops.batch_norm_act(input, *running)
    ops.batch_norm_act(input[:0], *running, training=True)
    assert all(torch.equal(a, b) for a, b in zip(running, before, strict=True))
    half = [value.bfloat16() for value in running]
    ops.batch_norm_act(input, *half, training=True, momentum=0.5)
    expected = 0.5 * before[0] + 0.5 * input.mean((0, 2, 3))
    torch.testing.assert_close(half[0].float(), expected, rtol=2e-2, atol=1e-2)


def test_a_single_value_per_channel_is_refused_in_training_only():
    for shape in ((1, 8, 1, 1), (1, 8)):
        with pytest.raises(ValueError, match=r"input: expected more than one value per channel in training, got \[1, 8"):
            ops.batch_norm_act(torch.ones(shape), None, None, training=True)
        out = ops.batch_norm_act(torch.ones(shape), torch.zeros(8), torch.ones(8), eps=0.0)
        torch.testing.assert_close(out, torch.ones(shape))


# ----------------------------------------------------------------------------------------------------------------------
# Types and layouts


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("residual_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_mix(residual_dtype, activation, layout, device):
    if device == "cuda" and residual_dtype == torch.float16:
        pytest.skip("torch adds no fp16 in place to bf16")
    values = arguments((2, 16, 9, 8), torch.bfloat16, layout, True, device, torch.float32)
    values[3] = values[3].detach().to(residual_dtype).requires_grad_()
    compare(values, layout, activation=activation)


@pytest.mark.parametrize("params", [torch.bfloat16, torch.float64])
def test_parameters_of_any_type(params):
    compare(arguments((2, 16, 9, 8), torch.bfloat16, torch.channels_last, False, params=params), activation="silu")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_keep_the_layout(layout):
    input, weight, bias, residual = arguments((2, 16, 9, 8), torch.float32, layout, True)
    out = own(input, weight, bias, residual, activation="relu")
    assert out.is_contiguous(memory_format=layout)
    out.sum().backward()
    assert input.grad.is_contiguous(memory_format=layout)


def test_every_layout_of_input_residual_and_gradient():
    base = random(4, 20, 14, 18, dtype=torch.float32)

    def variants(seed):
        values = random(2, 8, 6, 7, seed=seed, dtype=torch.float32)
        yield values
        yield values.contiguous(memory_format=torch.channels_last)
        yield base.contiguous(memory_format=torch.channels_last)[:2, 3:11, 2:8, 4:11]  # no run of pixels
        yield base.contiguous(memory_format=torch.channels_last)[::2, :8, :6, :7]  # images with a gap between them
        yield base[1:3, 5:13, :6, :7]
        yield values.transpose(2, 3).contiguous().transpose(2, 3)
        yield values[:1].expand(2, -1, -1, -1)
        yield values[:, :, :1, :1].expand(-1, -1, 6, 7)
        yield random(2, 6, 7, 24, seed=seed, dtype=torch.float32)[..., 8:16].permute(0, 3, 1, 2)

    for input in variants(1):
        for residual, gradient in zip(variants(2), variants(3), strict=True):
            values = [input.detach().requires_grad_(), None, None, residual.detach().requires_grad_()]
            wide = in_float64(values)
            for activation in ("relu", "silu"):
                out, expected = own(*values, activation=activation), by_torch(*wide, activation=activation)
                assert_near(out, expected, 1e-5)
                mine = torch.autograd.grad(out, (values[0], values[3]), gradient)
                other = torch.autograd.grad(expected, (wide[0], wide[3]), gradient.double())
                for a, b in zip(mine, other, strict=True):
                    assert_near(a, b, 1e-5)


def test_any_rank():
    for shape in ((6, 8), (3, 8, 11), (2, 8, 3, 4, 5), (2, 8, 2, 2, 3, 2)):
        compare(arguments(shape, torch.float32, residual=True), expected=by_torch, activation="relu")
    rows = random(3, 11, 8, dtype=torch.float32)  # channels innermost, no copy
    out = ops.batch_norm_act(rows.transpose(1, 2), None, None, training=True)
    assert out.stride() == rows.transpose(1, 2).stride()
    assert_near(out, F.batch_norm(rows.double().transpose(1, 2), None, None, training=True), 1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 5), (2, 0, 4, 4), (0, 8)])
def test_empty_maps(shape, training):
    input = torch.zeros(shape, requires_grad=True)
    weight, bias = (torch.ones(shape[1], requires_grad=True) for _ in range(2))
    running = torch.zeros(shape[1]), torch.ones(shape[1])
    out = ops.batch_norm_act(input, *running, weight, bias, training, activation="silu")
    assert out.shape == shape
    out.sum().backward()
    assert input.grad.shape == shape
    assert torch.equal(weight.grad, torch.zeros_like(weight)) and torch.equal(bias.grad, torch.zeros_like(bias))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_element_is_written(layout):
    # Fresh memory is filled with NaN in deterministic mode.
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        for shape in ((2, 6, 5, 7), (1, 40, 33, 31)):
            compare(arguments(shape, torch.float32, layout, True), layout, activation="relu")
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
