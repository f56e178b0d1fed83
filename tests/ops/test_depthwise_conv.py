"""depthwise_conv2d against float64 and torch's convolution: values, gradients, types, layouts."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fastnas import ops
from tests.ops import reference_depthwise as reference
from tests.ops.norm_problems import LAYOUTS, TOLERANCE, assert_near, in_float64, random

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def arguments(shape, kernel, dtype=torch.float64, layout=torch.contiguous_format, bias=True, params=None):
    """input, weight, bias that require gradients."""
    params = params or (torch.float64 if dtype == torch.float64 else torch.float32)
    values = [
        random(*shape, seed=1, dtype=dtype, layout=layout),
        random(shape[1], 1, *kernel, seed=2, dtype=params),
        random(shape[1], seed=3, dtype=params) if bias else None,
    ]
    return [None if value is None else value.detach().requires_grad_() for value in values]


def torch_conv2d(input, weight, bias, stride, padding):
    top, bottom, left, right = padding
    return F.conv2d(F.pad(input, (left, right, top, bottom)), weight, bias, stride, groups=input.shape[1])


def operator(input, weight, bias, stride, padding):
    """Our own forward pass, which the function leaves to ATen for some maps."""
    return torch.ops.fastnas.depthwise_conv2d(input, weight, bias, list(stride), list(padding))


def own_gradients(gradient, input, weight, bias, stride, padding):
    """Our own backward pass, which the function leaves to ATen for some layouts."""
    return torch.ops.fastnas.depthwise_conv2d_backward(
        gradient, input, weight, list(stride), list(padding), [True, True, bias is not None]
    )


def compare(values, stride, padding, layout=torch.contiguous_format, expected_of=torch_conv2d):
    """Results (of the function and of the operator) and all gradients against float64."""
    input, weight, bias = values
    wide = in_float64(values)
    out = ops.depthwise_conv2d(input, weight, bias, stride, padding)
    expected = expected_of(*wide, stride, padding)
    tolerance = TOLERANCE[input.dtype]
    with torch.no_grad():
        native = operator(input, weight, bias, stride, padding)
    for result in (out, native):
        assert result.dtype == input.dtype and result.shape == expected.shape
        assert_near(result, expected, tolerance)
    gradient = random(*expected.shape, seed=9, dtype=input.dtype, layout=layout)
    out.backward(gradient)
    expected.backward(gradient.double())
    with torch.no_grad():
        computed = own_gradients(gradient, input, weight, bias, stride, padding)
    for own, result, other in zip(values, computed, wide, strict=True):
        if own is not None:
            assert own.grad.dtype == own.dtype and own.grad.shape == own.shape == result.shape
            assert_near(own.grad, other.grad, tolerance)
            assert_near(result, other.grad, tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_reference(dtype, kernel, stride, layout):
    border = kernel[0] // 2
    values = arguments((2, 20, 9, 11), kernel, dtype, layout)
    compare(values, stride, (border, border - 1, border - 1, border), layout, reference.depthwise_conv2d)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((2, 32, 20, 19), (3, 3), (1, 1), (1, 1, 1, 1)),
        ((2, 96, 17, 24), (3, 3), (2, 2), (0, 1, 0, 1)),
        ((1, 48, 13, 40), (5, 5), (1, 1), (2, 2, 2, 2)),
        ((3, 16, 32, 16), (5, 5), (2, 2), (1, 2, 1, 2)),
        ((1, 33, 7, 5), (7, 7), (1, 1), (3, 3, 3, 3)),  # no fast kernel, no full block
        ((2, 1, 9, 9), (3, 3), (1, 1), (1, 1, 1, 1)),
        ((2, 16, 9, 10), (1, 1), (2, 3), (0, 0, 0, 0)),  # rows and columns that nothing reads
        ((1, 17, 12, 14), (2, 4), (3, 1), (1, 0, 3, 2)),
        ((1, 16, 6, 6), (3, 3), (4, 5), (2, 2, 2, 2)),
        ((2, 16, 3, 3), (3, 3), (1, 1), (5, 6, 7, 4)),  # results of zeros alone
        ((1, 16, 1, 1), (3, 3), (1, 1), (1, 1, 1, 1)),
        ((1, 160, 90, 101), (3, 3), (2, 2), (1, 1, 1, 1)),  # several bands
        ((1, 160, 90, 101), (5, 5), (1, 1), (2, 2, 2, 2)),
    ],
)
def test_equals_torch(shape, kernel, stride, padding, dtype, layout):
    compare(arguments(shape, kernel, dtype, layout), stride, padding, layout)


@given(
    st.integers(1, 2), st.integers(1, 40), st.tuples(st.integers(1, 12), st.integers(1, 20)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)), st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 4)] * 4), st.booleans(), st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_any_shape(images, channels, sides, kernel, stride, padding, bias, layout):
    kernel = (min(kernel[0], sides[0] + padding[0] + padding[1]), min(kernel[1], sides[1] + padding[2] + padding[3]))
    compare(arguments((images, channels, *sides), kernel, torch.float64, layout, bias), stride, padding, layout)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.integers(1, 3))
def test_same_pads_as_tensorflow(height, width, kernel, stride):
    input, weight, _ = arguments((1, 3, height, width), (kernel, kernel))
    out = ops.depthwise_conv2d(input, weight, None, stride, "same")
    assert out.shape[2:] == (-(-height // stride), -(-width // stride))
    borders = []
    for side, steps in zip((height, width), out.shape[2:], strict=True):
        added = max((steps - 1) * stride + kernel - side, 0)
        borders += [added // 2, (added + 1) // 2]
    assert_near(out, reference.depthwise_conv2d(input, weight, None, (stride, stride), tuple(borders)), 1e-10)


def test_ways_to_write_stride_and_padding():
    input, weight, bias = arguments((1, 4, 9, 8), (3, 3))
    expected = F.conv2d(input, weight, bias, (2, 1), (1, 2), groups=4)
    for padding in ((1, 2), (1, 1, 2, 2)):
        assert_near(ops.depthwise_conv2d(input, weight, bias, (2, 1), padding), expected, 1e-10)
    assert_near(ops.depthwise_conv2d(input, weight, bias, 2, 1), F.conv2d(input, weight, bias, 2, 1, groups=4), 1e-10)


# ----------------------------------------------------------------------------------------------------------------------
# Types and layouts


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("params", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_types_mix(dtype, params, layout):
    values = arguments((2, 24, 6, 7), (3, 3), dtype, layout, params=params)
    input, weight, bias = values
    out = ops.depthwise_conv2d(input, weight, bias, 1, 1)
    assert out.dtype == dtype
    out.float().sum().backward()
    wide = in_float64(values)
    expected = torch_conv2d(*wide, 1, (1, 1, 1, 1))
    expected.sum().backward()
    tolerance = max(TOLERANCE[dtype], TOLERANCE[params])
    assert_near(out, expected, tolerance)
    for own, other in zip(values, wide, strict=True):
        assert own.grad.dtype == own.dtype
        assert_near(own.grad, other.grad, tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("kernel", [3, 5])
def test_results_keep_the_layout(kernel, padding, layout):
    input, weight, _ = arguments((2, 16, 8, 10), (kernel, kernel), torch.float32, layout)
    out = ops.depthwise_conv2d(input, weight, None, 2, padding)
    assert out.is_contiguous(memory_format=layout)
    out.sum().backward()
    assert input.grad.is_contiguous(memory_format=layout)


def test_every_layout_of_input_and_gradient():
    base = random(4, 20, 14, 18, dtype=torch.float32)

    def variants(seed):
        values = random(2, 8, 6, 7, seed=seed, dtype=torch.float32)
        yield values
        yield values.contiguous(memory_format=torch.channels_last)
        yield base.contiguous(memory_format=torch.channels_last)[:2, 3:11, 2:8, 4:11]
        yield base.contiguous(memory_format=torch.channels_last)[::2, ::2][:, :8, 1:7, 1:8]
        yield base[1:3, 5:13, :6, :7]
        yield values.transpose(2, 3).contiguous().transpose(2, 3)
        yield values[:1].expand(2, -1, -1, -1)
        yield values[:, :, :1, :1].expand(-1, -1, 6, 7)

    weight = random(8, 1, 3, 3, dtype=torch.float32)
    for input in variants(1):
        for gradient in variants(3):
            values = [input.detach().requires_grad_(), weight.detach().requires_grad_(), None]
            wide = in_float64(values)
            out, expected = ops.depthwise_conv2d(*values, 1, 1), torch_conv2d(*wide, 1, (1, 1, 1, 1))
            other = torch.autograd.grad(expected, wide[:2], gradient.double())
            with torch.no_grad():
                native = operator(*values, (1, 1), (1, 1, 1, 1))
                computed = own_gradients(gradient, *values, (1, 1), (1, 1, 1, 1))[:2]
            for own in (torch.autograd.grad(out, values[:2], gradient), computed):
                for a, b in zip((native, *own), (expected, *other), strict=True):
                    assert_near(a, b, 1e-5)


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 0, 4, 4)])
def test_empty_maps(shape):
    values = [value.detach() for value in arguments(shape, (3, 3), torch.float32)]
    out = operator(*values, (1, 1), (0, 1, 0, 1))
    assert out.shape == (*shape[:2], 3, 3)
    input_grad, *others = own_gradients(out, *values, (1, 1), (0, 1, 0, 1))
    assert input_grad.shape == shape
    for value, gradient in zip(values[1:], others, strict=True):
        assert torch.equal(gradient, torch.zeros_like(value))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_element_is_written(layout):
    # Fresh memory is filled with NaN in deterministic mode.
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        for shape, kernel, stride in (((2, 6, 5, 7), 3, 1), ((1, 40, 33, 31), 5, 2), ((1, 16, 9, 9), 1, 3)):
            values = arguments(shape, (kernel, kernel), torch.float32, layout)
            compare(values, (stride, stride), (1, 0, 0, 1), layout)
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_bad_number_stays_where_its_windows_are(layout):
    input, weight, _ = arguments((1, 32, 12, 12), (3, 3), torch.float32, layout)
    with torch.no_grad():
        input[0, 5, 6, 6] = float("nan")
    out = operator(input.detach(), weight.detach(), None, (1, 1), (1, 1, 1, 1))
    expected = torch.zeros(1, 32, 12, 12, dtype=torch.bool)
    expected[0, 5, 5:8, 5:8] = True
    assert torch.equal(out.isnan(), expected)


# ----------------------------------------------------------------------------------------------------------------------
# The backward pass


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (0, 2, 1, 0)])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3), (1, 1)), ((3, 3), (2, 2)), ((2, 3), (3, 1))])
def test_gradcheck(kernel, stride, padding, layout):
    input, weight, bias = arguments((2, 3, 5, 4), kernel, torch.float64, layout)
    for given_bias in (bias, None):
        values = [value for value in (input, weight, given_bias) if value is not None]
        assert torch.autograd.gradcheck(lambda *args: ops.depthwise_conv2d(*args, stride=stride, padding=padding), values)


def test_only_wanted_gradients():
    everything = arguments((2, 24, 6, 5), (3, 3), torch.float32, torch.channels_last)
    expected = torch.autograd.grad(ops.depthwise_conv2d(*everything, 1, 1).square().sum(), everything)
    for mask in range(1, 8):
        values = [value.detach().requires_grad_(bool(mask >> i & 1)) for i, value in enumerate(everything)]
        ops.depthwise_conv2d(*values, 1, 1).square().sum().backward()
        for value, gradient in zip(values, expected, strict=True):
            assert (value.grad is not None) == value.requires_grad
            if value.requires_grad:
                assert torch.equal(value.grad, gradient)


def test_no_gradient_of_gradients_and_none_without_grad_mode():
    input, weight, _ = arguments((1, 8, 4, 4), (3, 3))
    with torch.no_grad():
        assert not ops.depthwise_conv2d(input, weight, None, 1, 1).requires_grad
    result = ops.depthwise_conv2d(input, weight, None, 1, 1).square().sum()
    (gradient,) = torch.autograd.grad(result, input, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 2)])
def test_the_same_bits_for_any_number_of_threads(kernel, stride, layout):
    values = arguments((2, 40, 90, 101), (kernel, kernel), torch.float32, layout)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with torch.no_grad():
                out = operator(*values, (stride, stride), (1, 2, 1, 2))
                results.append((out, *own_gradients(out, *values, (stride, stride), (1, 2, 1, 2))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
