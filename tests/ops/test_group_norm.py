"""group_norm_act against torch's group_norm and against the slow reference."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fastnas import ops
from tests.ops import reference_norm as reference

LAYOUTS = [torch.contiguous_format, torch.channels_last]
ACTIVATIONS = ["none", "relu", "silu"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
# Rounding of the type itself; sums are fp32 (fp64 for fp64).
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def needs_gpu(request):
    if request.node.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU here")


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
    """Result and all gradients against float64."""
    input, weight, bias, residual = values
    wide = in_float64(values)
    out = ops.group_norm_act(input, groups, weight, bias, eps, activation, residual)
    expected = expected_of(wide[0], groups, wide[1], wide[2], eps, activation, wide[3])
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


# ----------------------------------------------------------------------------------------------------------------------
# Values


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


# ----------------------------------------------------------------------------------------------------------------------
# Gradients


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


# ----------------------------------------------------------------------------------------------------------------------
# The module and the operator


@pytest.mark.parametrize("affine", [True, False])
def test_the_module_is_a_group_norm(affine):
    own, other = ops.GroupNormAct(4, 16, 1e-3, affine, "relu"), torch.nn.GroupNorm(4, 16, 1e-3, affine)
    assert own.state_dict().keys() == other.state_dict().keys()
    if affine:
        other.weight.data.uniform_(-1, 1)
        other.bias.data.uniform_(-1, 1)
    own.load_state_dict(other.state_dict())
    input, residual = random(2, 16, 5, 5, dtype=torch.float32), random(2, 16, 5, 5, seed=1, dtype=torch.float32)
    torch.testing.assert_close(own(input), F.relu(other(input)))
    torch.testing.assert_close(own(input, residual), F.relu(other(input) + residual))
    assert "activation='relu'" in repr(own)
    for twin in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert torch.equal(twin(input), own(input))


def test_bad_arguments_name_the_argument():
    input, channels = random(2, 8, 4, 4, dtype=torch.float32), torch.ones(8)
    cases = [
        ((input[0, 0, 0], 2), {}, r"input: expected \[N, C, \.\.\.\], got \[4\]"),
        ((input.int(), 2), {}, "input: expected fp32, fp64, fp16 or bf16, got int32"),
        ((input, 3), {}, "groups: expected a positive divisor of the 8 channels, got 3"),
        ((input, 0), {}, "groups: expected a positive divisor of the 8 channels, got 0"),
        ((input, 2, channels[:7]), {}, r"weight: expected \[8\], got \[7\]"),
        ((input, 2, channels, channels.int()), {}, "bias: expected fp32, fp64, fp16 or bf16, got int32"),
        ((input, 2), {"activation": "gelu"}, "activation: expected none, relu or silu, got gelu"),
        ((input, 2), {"residual": input[:1]}, r"residual: expected \[2, 8, 4, 4\] like input, got \[1, 8, 4, 4\]"),
        ((input[:, :, 0], 2), {"residual": input}, r"residual: expected \[2, 8, 4\] like input"),
    ]
    for args, keywords, message in cases:
        with pytest.raises(RuntimeError, match=message):
            ops.group_norm_act(*args, **keywords)
    backward = torch.ops.fastnas.group_norm_act_backward
    mean = torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match=r"mean: expected \[2, 2\] of fp32"):
        backward(input, input, mean[:1], mean, 2, None, None, "none", None, [True] * 4)
    with pytest.raises(RuntimeError, match="wanted: there is no weight"):
        backward(input, input, mean, mean, 2, None, None, "none", None, [True, True, False, False])
    with pytest.raises(RuntimeError, match="grad: expected .2, 8, 4, 4. like input"):
        backward(input[:1], input, mean, mean, 2, None, None, "none", None, [True, False, False, False])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout, device):
    input, weight, bias, residual = (
        value.detach() for value in arguments((2, 8, 5, 6), torch.float32, layout, True, device)
    )
    forward, backward = torch.ops.fastnas.group_norm_act.default, torch.ops.fastnas.group_norm_act_backward.default
    for args in ((weight, bias, 1e-5, "relu", residual), (None, None, 1e-5, "none", None)):
        torch.library.opcheck(forward, (input, 4, *args))
    _, mean, rstd = forward(input, 4, weight, bias, 1e-5, "silu", residual)
    for wanted in ([True] * 4, [False, True, False, True], [True, False, False, False]):
        torch.library.opcheck(backward, (residual, input, mean, rstd, 4, weight, bias, "silu", residual, wanted))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_and_exports_whole(layout):
    module = ops.GroupNormAct(4, 16, activation="silu")
    input = random(2, 16, 6, 7, dtype=torch.float32, layout=layout).requires_grad_()
    residual = random(2, 16, 6, 7, seed=1, dtype=torch.float32).requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    gradient = random(2, 16, 6, 7, seed=2, dtype=torch.float32)
    results = [run(input, residual) for run in (module, compiled)]
    torch.testing.assert_close(*results, rtol=0, atol=0)
    gradients = [torch.autograd.grad(out, (input, residual, *module.parameters()), gradient) for out in results]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
    exported = torch.export.export(module.eval(), (input.detach(), residual.detach()))
    torch.testing.assert_close(exported.module()(input, residual), results[0], rtol=0, atol=0)
