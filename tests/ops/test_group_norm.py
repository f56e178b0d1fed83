"""group_norm_act against torch's group_norm and against the slow reference: values, types, layouts."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fastnas import ops
from tests.ops import reference_norm as reference
from tests.ops.norm_problems import (
    ACTIVATIONS,
    DEVICES,
    LAYOUTS,
    arguments,
    assert_near,
    compare,
    in_float64,
    random,
    torch_group_norm,
)

pytestmark = pytest.mark.usefixtures("gpu_if_marked")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_equals_the_reference(dtype, residual, activation, layout, device):
    if dtype == torch.float64 and device == "cuda":
        pytest.skip("fp64 is for the CPU")
    compare(arguments((2, 12, 7, 9), dtype, layout, residual, device), 4, activation, layout)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((2, 32, 20, 19), 32),  # one channel per group
        ((1, 64, 13, 21), 32),
        ((3, 128, 16, 10), 32),
        ((2, 256, 25, 38), 32),
        ((1, 256, 9, 8), 8),  # 32 channels per group
        ((2, 96, 11, 12), 32),  # three
        ((1, 10, 33, 31), 2),  # no multiple of any vector
        ((2, 16, 70, 101), 1),  # one group, several slices
        ((4, 8, 1, 1), 2),
        ((2, 1, 5, 6), 1),
        ((1, 7, 1, 300), 7),
    ],
)
def test_equals_torch(shape, groups, dtype, layout, device):
    for activation, residual in (("silu", False), ("relu", True)):
        values = arguments(shape, dtype, layout, residual, device)
        compare(values, groups, activation, layout, expected_of=torch_group_norm)


@pytest.mark.cuda
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((2, 256, 100, 152), 32),  # clusters
        ((2, 64, 200, 304), 32),
        ((1, 256, 200, 304), 32),  # larger than any cluster: streamed
        ((2, 256, 100, 153), 1),
        ((8, 256, 56, 56), 32),
        ((1, 2048, 13, 13), 1),
        ((2, 72, 50, 51), 3),  # last tile of a streamed map is narrower
        ((1, 136, 301, 303), 2),
    ],
)
def test_large_maps_on_the_gpu(shape, groups, dtype, layout):
    values = arguments(shape, dtype, layout, True, "cuda")
    compare(values, groups, "silu", layout, expected_of=torch_group_norm)


@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9), st.integers(1, 40),
    st.sampled_from(ACTIVATIONS), st.booleans(), st.booleans(), st.sampled_from(LAYOUTS),
)
def test_any_shape(images, groups, per_group, height, width, activation, affine, residual, layout):
    values = arguments((images, groups * per_group, height, width), torch.float64, layout, residual)
    if not affine:
        values[1] = values[2] = None
    compare(values, groups, activation, layout, eps=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean", [1e3, -3e4])
def test_large_means_lose_nothing_but_the_input_s_rounding(mean, layout, device):
    # E[x^2] - E[x]^2 in fp32 would leave no correct digit here.
    input = (random(2, 16, 40, 41) + mean).float().contiguous(memory_format=layout).to(device)
    out = ops.group_norm_act(input, 4)
    expected = reference.group_norm_act(input.cpu(), 4)
    assert (out.cpu() - expected).abs().max() < 4 * abs(mean) * 2**-24 + 1e-5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_far_value_does_not_spoil_the_variance(layout, device):
    input = random(1, 8, 40, 50, dtype=torch.float32)
    input[0, 0, 0, 0] = 1e5  # the first value, from which deviations are measured first
    input = input.contiguous(memory_format=layout).to(device)
    out = ops.group_norm_act(input, 2)
    assert_near(out, reference.group_norm_act(input.cpu(), 2), 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bad_numbers_behave_as_in_torch(activation, layout, device):
    for bad in (float("nan"), float("inf"), -float("inf")):
        input = random(2, 6, 5, 7, dtype=torch.float32, layout=layout, device=device)
        input[1, 2, 3, 4] = bad
        residual = random(2, 6, 5, 7, seed=5, dtype=torch.float32, layout=layout, device=device)
        residual[0, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        values = (input.requires_grad_(), residual.requires_grad_())
        out = ops.group_norm_act(values[0], 3, activation=activation, residual=values[1])
        expected = torch_group_norm(values[0], 3, None, None, 1e-5, activation, values[1])
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
        if activation == "silu":
            continue  # torch's own derivative of silu at infinity is NaN on one device and not on the other
        for own, other in zip(
            torch.autograd.grad(out.sum(), values), torch.autograd.grad(expected.sum(), values), strict=True
        ):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_numbers_whose_squares_overflow():
    # torch gives NaN. Ours are right where a tile of one row needs no squares in fp32, else the variance is infinite.
    for layout in LAYOUTS:
        input = (random(1, 4, 8, 8) * 1e30).float().contiguous(memory_format=layout)
        assert ops.group_norm_act(input, 2).isfinite().all()


def test_silu_over_the_whole_range():
    offsets = torch.linspace(-120, 120, 4001)
    input = torch.zeros(1, 4001, 2, 2)  # every group is constant: its result is the bias
    out = ops.group_norm_act(input, 1, None, offsets, activation="silu")[0, :, 0, 0]
    expected = F.silu(offsets.double())
    assert ((out - expected).abs() <= 4e-7 * expected.abs() + 1e-35).all()


# ----------------------------------------------------------------------------------------------------------------------
# Types and layouts


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("residual_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("params", [torch.float32, torch.bfloat16, torch.float64])
def test_types_mix(params, residual_dtype, layout, device):
    values = arguments((2, 16, 9, 8), torch.bfloat16, layout, True, device, params)
    values[3] = values[3].detach().to(residual_dtype).requires_grad_()
    compare(values, 4, "relu", layout)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_keep_the_layout(layout, device):
    input, weight, bias, residual = arguments((2, 16, 9, 8), torch.float32, layout, True, device)
    out = ops.group_norm_act(input, 4, weight, bias, activation="relu", residual=residual)
    assert out.is_contiguous(memory_format=layout)
    out.sum().backward()
    assert input.grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("device", DEVICES)
def test_every_layout_of_input_residual_and_gradient(device):
    base = random(4, 20, 14, 18, dtype=torch.float32, device=device)

    def variants(seed):
        values = random(2, 8, 6, 7, seed=seed, dtype=torch.float32, device=device)
        yield values
        yield values.contiguous(memory_format=torch.channels_last)
        yield base.contiguous(memory_format=torch.channels_last)[:2, 3:11, 2:8, 4:11]  # no run of pixels
        yield base.contiguous(memory_format=torch.channels_last)[::2, ::2][:, :8, 1:7, 1:8]
        yield base[1:3, 5:13, :6, :7]
        yield values.transpose(2, 3).contiguous().transpose(2, 3)
        yield values[:1].expand(2, -1, -1, -1)
        yield values[:, :, :1, :1].expand(-1, -1, 6, 7)
        yield random(2, 6, 7, 24, seed=seed, dtype=torch.float32, device=device)[..., 8:16].permute(0, 3, 1, 2)

    for input in variants(1):
        for residual, gradient in zip(variants(2), variants(3), strict=True):
            values = [input.detach().requires_grad_(), None, None, residual.detach().requires_grad_()]
            wide = in_float64(values)
            out = ops.group_norm_act(values[0], 4, activation="silu", residual=values[3])
            expected = torch_group_norm(wide[0], 4, None, None, 1e-5, "silu", wide[3])
            assert_near(out, expected, 1e-5)
            own = torch.autograd.grad(out, (values[0], values[3]), gradient)
            other = torch.autograd.grad(expected, (wide[0], wide[3]), gradient.double().cpu())
            for a, b in zip(own, other, strict=True):
                assert_near(a, b, 1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_any_rank(device):
    for shape in ((6, 8), (3, 8, 11), (2, 8, 3, 4, 5), (2, 8, 2, 2, 3, 2)):
        compare(arguments(shape, torch.float32, residual=True, device=device), 2, "relu", expected_of=torch_group_norm)
    rows = random(3, 11, 8, dtype=torch.float32, device=device)  # channels innermost, no copy
    out = ops.group_norm_act(rows.transpose(1, 2), 2)
    assert out.stride() == rows.transpose(1, 2).stride()
    assert_near(out, F.group_norm(rows.double().cpu().transpose(1, 2), 2), 1e-5)
    volume = random(2, 8, 3, 4, 5, dtype=torch.float32, device=device).contiguous(memory_format=torch.channels_last_3d)
    out = ops.group_norm_act(volume, 2)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    assert_near(out, F.group_norm(volume.double().cpu(), 2), 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 5), (2, 0, 4, 4), (0, 8)])
def test_empty_maps(shape, device):
    input = torch.zeros(shape, device=device, requires_grad=True)
    weight = torch.ones(shape[1], device=device, requires_grad=True)
    bias = torch.zeros(shape[1], device=device, requires_grad=True)
    out = ops.group_norm_act(input, 2, weight, bias, activation="silu")
    assert out.shape == shape
    out.sum().backward()
    assert input.grad.shape == shape
    assert torch.equal(weight.grad, torch.zeros_like(weight)) and torch.equal(bias.grad, torch.zeros_like(bias))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_element_is_written(layout, monkeypatch):
    # Fresh memory is filled with NaN in deterministic mode.
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        for shape in ((2, 6, 5, 7), (1, 40, 33, 31)):
            compare(arguments(shape, torch.float32, layout, True), 2, "relu", layout)
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
