"""weighted_fusion against effdet's own node, torch's resampling and the float64 reference."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas import ops
from tests.ops import reference_fusion as reference
from tests.ops.fusion_nodes import DOWN, LAYOUTS, THREE, UP, copies, gradients, maps, some_weights

METHODS = ["fast", "softmax", "sum"]
ACTIVATIONS = ["none", "relu", "silu"]


def assert_equals_reference(inputs, weights, size, **how):
    mine, theirs = [*inputs, weights], copies([*inputs, weights])
    if how.get("method") == "sum":
        mine, theirs = mine[:-1], theirs[:-1]
    out = ops.weighted_fusion(inputs, weights, size, **how)
    expected = reference.weighted_fusion(theirs[: len(inputs)], theirs[-1], size, **how)
    torch.testing.assert_close(out, expected)
    for a, b in zip(gradients(out, mine), gradients(expected, theirs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [UP, DOWN, THREE])
def test_equals_the_reference(sizes, activation, method, layout):
    inputs = maps(sizes, layout=layout)
    assert_equals_reference(inputs, some_weights(len(sizes)), (12, 8), method=method, activation=activation)


@st.composite
def nodes(draw):
    height, width = draw(st.integers(1, 11)), draw(st.integers(1, 11))

    def one_axis(size, level):
        if level == "same":
            return size
        if level == "down":
            return draw(st.sampled_from([size * 2, size * 2 - 1]))
        return draw(st.sampled_from([coarse for coarse in (size // 2, (size + 1) // 2) if coarse > 0]))

    levels = draw(st.lists(st.sampled_from(["same", "up", "down"]), min_size=2, max_size=3))
    sizes = [(one_axis(height, level), one_axis(width, level)) for level in levels]
    return (height, width), sizes


@settings(max_examples=70, deadline=None)
@given(
    node=nodes(),
    channels=st.sampled_from([1, 2, 3, 16, 21]),
    images=st.integers(1, 3),
    layout=st.sampled_from(LAYOUTS),
    method=st.sampled_from(METHODS),
    activation=st.sampled_from(ACTIVATIONS),
    padding=st.sampled_from(["same", "symmetric"]),
    seed=st.integers(0, 1000),
)
def test_any_sizes_equal_the_reference(node, channels, images, layout, method, activation, padding, seed):
    size, sizes = node
    inputs = maps(sizes, channels, images, layout, seed=seed)
    how = {"method": method, "activation": activation, "padding": padding}
    assert_equals_reference(inputs, some_weights(len(sizes)), size, **how)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(16, 16), (13, 9), (5, 6), (1, 1), (7, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_node_of_effdet(method, size, layout):
    effdet = pytest.importorskip("effdet.efficientdet")
    double = tuple(2 * side if side > 1 else 2 for side in size)
    half = tuple(-(-side // 2) for side in size)
    sizes = [size, size, double] if size == (1, 1) else [size, half, double]
    node = effdet.FpnCombine(
        [{"num_chs": 24, "size": side} for side in sizes],
        24,
        (0, 1, 2),
        size,
        pad_type="same",
        weight_method={"fast": "fastattn", "softmax": "attn", "sum": "sum"}[method],
    ).double()
    mine, theirs = maps(sizes, 24, layout=layout), maps(sizes, 24, layout=layout)
    module = ops.WeightedFusion(3, method, "silu").double()
    if method != "sum":
        with torch.no_grad():
            module.weights.copy_(some_weights(3))
            node.edge_weights.copy_(some_weights(3))
        mine, theirs = [*mine, module.weights], [*theirs, node.edge_weights]
    out, expected = module(mine[:3]), F.silu(node(theirs[:3]))
    torch.testing.assert_close(out, expected)
    for a, b in zip(gradients(out, mine), gradients(expected, theirs), strict=True):
        torch.testing.assert_close(a, b)


def test_every_size_is_read_where_interpolate_reads_it():
    # Along one axis, which shows the source of every cell by its number; all lengths up to 400 and some long ones.
    for fine in [*range(1, 401), 1023, 1025, 2047, 2049, 4000]:
        for coarse in {fine // 2, (fine + 1) // 2} - {0}:
            numbers = torch.arange(float(coarse)).reshape(1, 1, 1, coarse)
            for level, size in ((numbers, (1, fine)), (numbers.mT, (fine, 1))):
                zeros = torch.zeros(1, 1, *size)
                out = ops.weighted_fusion([zeros, level], None, method="sum")
                assert torch.equal(out, F.interpolate(level, size)), (coarse, fine)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 5, 32])
@pytest.mark.parametrize("size", [(8, 10), (9, 7), (10, 1), (2, 3)])
def test_ties_and_nan_go_where_torch_sends_them(size, channels, layout):
    # Few values, so that windows are full of equal maxima; then NaN here and there, then infinities.
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, 3, (2, channels, *size), generator=generator).double()
    dirty = values.clone()
    dirty[torch.rand(values.shape, generator=generator) < 0.2] = float("nan")
    infinite = values.clone()
    infinite[values == 0] = float("-inf")
    infinite[values == 2] = float("inf")
    half = tuple(-(-side // 2) for side in size)
    for content in (values, dirty, infinite, torch.full_like(values, float("nan"))):
        mine = content.contiguous(memory_format=layout).requires_grad_()
        theirs = content.clone().requires_grad_()
        zeros = torch.zeros(2, channels, *half, dtype=torch.float64).contiguous(memory_format=layout)
        out = ops.weighted_fusion([zeros, mine], None, method="sum", padding="symmetric")
        expected = F.max_pool2d(theirs, 3, 2, 1)
        torch.testing.assert_close(out, expected, equal_nan=True, rtol=0, atol=0)
        (a,), (b,) = gradients(out, [mine]), gradients(expected, [theirs])
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [UP, DOWN, THREE])
def test_narrow_types_are_computed_in_fp32(sizes, layout, dtype, tolerance):
    inputs = maps(sizes, 37, layout=layout, dtype=dtype)
    weights = some_weights(len(sizes), torch.float32)
    wide = copies([*inputs, weights], torch.float64)
    out = ops.weighted_fusion(inputs, weights, activation="silu")
    expected = reference.weighted_fusion(wide[:-1], wide[-1], (12, 8), activation="silu")
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    mine = gradients(out, [*inputs, weights])
    assert [g.dtype for g in mine] == [dtype] * len(sizes) + [torch.float32]
    gradient_of_out = [g.double() for g in mine]
    rounded = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype).double()
    for a, b in zip(gradient_of_out[:-1], torch.autograd.grad(expected, wide[:-1], rounded, retain_graph=True), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    (of_weights,) = torch.autograd.grad(expected, wide[-1:], rounded)
    torch.testing.assert_close(gradient_of_out[-1], of_weights, rtol=1e-4, atol=1e-3)  # sums of 7000 terms of any sign


def test_silu_is_accurate_from_end_to_end():
    values = torch.cat([torch.linspace(-120, 120, 40_001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e38, -1e38])])
    level = values.reshape(1, 1, 1, -1).requires_grad_()
    zeros = torch.zeros_like(level)
    out = ops.weighted_fusion([level, zeros], None, method="sum", activation="silu")
    (slope,) = torch.autograd.grad(out.sum(), level)
    wide = values.double().requires_grad_()
    expected = F.silu(wide)
    torch.testing.assert_close(out.double().flatten(), expected, rtol=1e-6, atol=1e-35)
    torch.testing.assert_close(slope.double().flatten(), torch.autograd.grad(expected.sum(), wide)[0], rtol=1e-5, atol=3e-7)
    ends = torch.tensor([[[[float("nan"), float("inf")]]]])
    assert torch.equal(
        ops.weighted_fusion([ends, torch.zeros(1, 1, 1, 2)], None, method="sum", activation="silu").isnan(), ends.isnan()
    )


def test_type_and_layout_follow_the_first_input_of_the_nodes_size():
    small = maps([(6, 4)], 8, dtype=torch.float32)[0]
    own = maps([(12, 8)], 8, layout=torch.channels_last, dtype=torch.bfloat16)[0]
    weights = some_weights(2, torch.float32)
    out = ops.weighted_fusion([small, own], weights, (12, 8))
    assert out.dtype == torch.bfloat16 and out.is_contiguous(memory_format=torch.channels_last)
    a, b, c = torch.autograd.grad(out.float().sum(), [small, own, weights])
    assert (a.dtype, b.dtype, c.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    out = ops.weighted_fusion([small, small], weights, (12, 8))
    assert out.dtype == torch.float32 and out.is_contiguous() and out.shape == (2, 8, 12, 8)
    assert ops.weighted_fusion([small, own], weights).shape == (2, 8, 6, 4)  # no size: that of the first input


def test_views_and_any_gradient_layout():
    base = maps([(26, 20)], 30, layout=torch.channels_last)[0].detach()
    inputs = [base[:, 5:25, 2:14, ::2][..., :8], base[:, 3:23, :24, 2:18]]
    weights = some_weights(2)
    expected_inputs = copies(inputs)
    mine = [level.requires_grad_() for level in inputs]
    out = ops.weighted_fusion(mine, weights, activation="silu")
    expected = reference.weighted_fusion(expected_inputs, weights, (12, 8), activation="silu")
    torch.testing.assert_close(out, expected)
    contiguous = torch.randn(2, 20, 12, 8, dtype=torch.float64)
    for grad in (contiguous, contiguous.mT.contiguous().mT, torch.ones(1, 1, 1, 1, dtype=torch.float64).expand(out.shape)):
        got = torch.autograd.grad(out, mine, grad, retain_graph=True)
        wanted = torch.autograd.grad(expected, expected_inputs, grad, retain_graph=True)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_weights_of_zero_and_below():
    inputs = maps(UP)
    for values in ([-1.0, 2.0], [0.0, 0.5], [-1.0, -2.0]):
        assert_equals_reference(inputs, torch.tensor(values, dtype=torch.float64, requires_grad=True), (12, 8))
    nan = torch.tensor([float("nan"), 1.0], dtype=torch.float64)
    assert ops.weighted_fusion(inputs, nan).isnan().all()
    huge = torch.tensor([1000.0, 999.0], dtype=torch.float64)
    assert ops.weighted_fusion(inputs, huge, method="softmax").isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_gradcheck(method, layout):
    inputs = maps([(4, 3), (2, 2), (8, 5)], 2, layout=layout)
    assert torch.autograd.gradcheck(
        lambda w, *levels: ops.weighted_fusion(levels, w, method=method, activation="silu"), [some_weights(3), *inputs]
    )


def test_images_channels_or_gradients_that_are_not_there():
    weights = some_weights(2)
    for shape in ((0, 4), (3, 0)):
        inputs = [torch.zeros(*shape, 12, 8).double().requires_grad_(), torch.zeros(*shape, 6, 4).double().requires_grad_()]
        out = ops.weighted_fusion(inputs, weights)
        assert out.shape == (*shape, 12, 8)
        *_, of_weights = torch.autograd.grad(out.sum(), [*inputs, weights])
        assert torch.equal(of_weights, torch.zeros(2).double())
    a, b = maps(UP)
    (only,) = torch.autograd.grad(ops.weighted_fusion([a.detach(), b], weights.detach()).sum(), b)
    assert only.shape == b.shape
    with torch.no_grad():
        assert not ops.weighted_fusion([a, b], weights).requires_grad


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_result_is_written(layout, monkeypatch):
    # Memory that torch hands out is full of NaN, so a cell that no kernel writes shows.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        for sizes in (UP, DOWN, THREE, [(5, 7), (2, 4), (9, 14)], [(1, 1), (2, 1)], [(3, 3), (1, 1), (1, 1)]):
            inputs = maps(sizes, 19, layout=layout, dtype=torch.float32)
            out = ops.weighted_fusion(inputs, some_weights(len(sizes), torch.float32))
            assert out.isfinite().all() and all(g.isfinite().all() for g in gradients(out, inputs))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_for_any_number_of_threads(layout):
    inputs = maps([(46, 40), (23, 20), (92, 80)], 48, layout=layout, dtype=torch.float32)
    weights = some_weights(3, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = ops.weighted_fusion(inputs, weights, activation="silu")
            results.append((out, *gradients(out, [*inputs, weights])))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bad_arguments_name_the_argument():
    a, b = maps(UP)
    w = some_weights(2)
    cases = [
        (lambda: ops.weighted_fusion([a], w[:1]), "inputs: expected two or three maps, got 1"),
        (lambda: ops.weighted_fusion([a, b, b, b], w), "inputs: expected two or three maps, got 4"),
        (lambda: ops.weighted_fusion([a, b[..., :2, :1]], w), "inputs: input 1 is 2 x 1, .* one level .* resize it"),
        (lambda: ops.weighted_fusion([a, b[..., :3]], w), "inputs: input 1 is 6 x 3, "),
        (lambda: ops.weighted_fusion([a, b], w, (48, 32)), "inputs: input 0 is 12 x 8, .* node's size 48 x 32"),
        (lambda: ops.weighted_fusion([a, b[:, :3]], w), r"inputs: input 1 is \[2, 3, 6, 4\], .* other channels"),
        (lambda: ops.weighted_fusion([a, b[0]], w), "inputs: expected .N, C, h, w., input 1 has 3 dimensions"),
        (lambda: ops.weighted_fusion([a.long(), b.long()], w), "inputs: expected fp32, fp64, fp16 or bf16, got int64"),
        (lambda: ops.weighted_fusion([a, b[..., :0]], w), "inputs: input 1 is .2, 5, 6, 0., a map without cells"),
        (lambda: ops.weighted_fusion([a, b], some_weights(3)), r"weights: expected \[2\], .* got \[3\]"),
        (lambda: ops.weighted_fusion([a, b], None), r"weights: expected \[2\], one for each input; only method sum"),
        (lambda: ops.weighted_fusion([a, b], torch.ones(2).long()), "weights: expected fp32, .* got int64"),
        (lambda: ops.weighted_fusion([a, b], w, (0, 8)), "size: expected .height, width., both positive"),
        (lambda: ops.weighted_fusion([a, b], w, method="mean"), "method: expected one of fast, softmax, sum, got mean"),
        (lambda: ops.weighted_fusion([a, b], w, activation="gelu"), "activation: expected one of none, relu, silu, got gelu"),
        (lambda: ops.weighted_fusion([a, b], w, padding="valid"), "padding: expected one of same, symmetric, got valid"),
        (lambda: ops.weighted_fusion([a, b], w, eps=-1.0), "eps: expected a number that is not negative"),
        (lambda: ops.weighted_fusion([], w), r"inputs: expected two or three maps .* got \[\]"),
        (lambda: ops.weighted_fusion([w, w], w), r"inputs: expected two or three maps .* got \[\[2\], \[2\]\]"),
        (lambda: ops.weighted_fusion([b, b], w, 12), r"size: expected \(height, width\), got 12"),
        (lambda: ops.weighted_fusion([b, b], w, (12, 8, 1)), r"size: expected \(height, width\), got \(12, 8, 1\)"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
    backward = torch.ops.fastnas.weighted_fusion_backward.default
    node = ([12, 8], "fast", "none", "same", 1e-4)
    with pytest.raises(RuntimeError, match=r"grad: expected \[2, 5, 12, 8\], got \[2, 5, 6, 4\]"):
        backward(b, [a, b], w, *node)
    with pytest.raises(RuntimeError, match="grad: expected fp64 like the node, got fp32"):
        backward(a.float(), [a, b], w, *node)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_opcheck(method, layout):
    inputs = maps(THREE, 16, layout=layout, dtype=torch.float32)
    weights = None if method == "sum" else some_weights(3, torch.float32)
    node = ([12, 8], method, "silu", "same", 1e-4)
    detached = [level.detach() for level in inputs]
    weights = None if weights is None else weights.detach()
    torch.library.opcheck(torch.ops.fastnas.weighted_fusion.default, (detached, weights, *node))
    grad = torch.randn(2, 16, 12, 8)
    torch.library.opcheck(torch.ops.fastnas.weighted_fusion_backward.default, (grad, detached, weights, *node))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_and_exports_whole(layout):
    module = ops.WeightedFusion(3, activation="silu")
    inputs = maps(THREE, 16, layout=layout, dtype=torch.float32)

    def loss(levels):
        return module(levels).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), loss(inputs))
    for a, b in zip(
        torch.autograd.grad(compiled(inputs), [*inputs, module.weights]),
        torch.autograd.grad(loss(inputs), [*inputs, module.weights]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    plain = [level.detach() for level in inputs]
    exported = torch.export.export(module, (plain,))
    assert "fastnas.weighted_fusion" in exported.graph_module.code
    torch.testing.assert_close(exported.module()(plain), module(plain))


def test_module():
    module = ops.WeightedFusion(2, "softmax", "relu", padding="symmetric")
    assert torch.equal(module.weights, torch.ones(2)) and list(module.state_dict()) == ["weights"]
    assert not list(ops.WeightedFusion(3, "sum").parameters())
    assert "softmax" in repr(module) and "relu" in repr(module)
    inputs = maps(DOWN, dtype=torch.float32)
    how = {"method": "softmax", "activation": "relu", "padding": "symmetric"}
    assert torch.equal(module(inputs), ops.weighted_fusion(inputs, module.weights, **how))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module(inputs).mean().backward()
    optimizer.step()
    assert not torch.equal(module.weights, torch.ones(2)) and module.weights.isfinite().all()


def test_under_autocast_weights_stay_fp32():
    convolution = torch.nn.Conv2d(3, 8, 3, padding=1)
    module = ops.WeightedFusion(2, activation="silu")
    with torch.autocast("cpu", torch.bfloat16):
        level = convolution(torch.randn(1, 3, 16, 16))
        fused = module([level, level[..., ::2, ::2].float()])
    assert fused.dtype == torch.bfloat16
    fused.float().sum().backward()
    assert module.weights.grad.dtype == torch.float32 and convolution.weight.grad.abs().sum() > 0
