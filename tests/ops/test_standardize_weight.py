"""standardize_weight and standardize_weights against timm, the authors' code and the float64 reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fastnas import ops
from fastnas.errors import InputError
from tests.ops.reference_weights import poisoned, qiao_conv2d_weight, standardize

LAST, FIRST = torch.channels_last, torch.contiguous_format
SHAPES = [(4, 8, 3, 3), (5, 3, 7, 7), (3, 1, 3, 3), (2, 16, 1, 1), (1, 7, 1, 5), (3, 2, 2, 4), (2, 1, 1, 1), (6, 40, 3, 3)]
SHAPES.append((2, 333, 3, 3))


def filters(*shape: int, seed: int = 0, dtype=torch.float64, layout=FIRST) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1 + 0.02
    return values.to(dtype).contiguous(memory_format=layout)


class Calls(TorchDispatchMode):
    """Counts calls of our operators."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fastnas":
            self.names.append(function._schema.name.removeprefix("fastnas::"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", [FIRST, LAST])
@pytest.mark.parametrize("gained", [False, True])
@pytest.mark.parametrize("convention", ["timm", "paper"])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward_equal_the_reference(shape, convention, gained, layout):
    weight = filters(*shape, layout=layout).requires_grad_()
    gain = filters(shape[0], 1, 1, 1, seed=1).requires_grad_() if gained else None
    grad = filters(*shape, seed=2)
    sources = [weight, gain] if gained else [weight]
    expected = standardize(weight, convention, None, gain, 0.7)
    expected_grads = torch.autograd.grad(expected, sources, grad)
    for result_layout in (None, False, True):
        out = ops.standardize_weight(weight, gain, convention=convention, scale=0.7, channels_last=result_layout)
        torch.testing.assert_close(out, expected)
        wanted = layout if result_layout is None else LAST if result_layout else FIRST
        assert out.is_contiguous(memory_format=wanted) and weight.is_contiguous(memory_format=layout)
        for grad_layout in (FIRST, LAST):
            got = torch.autograd.grad(out, sources, grad.contiguous(memory_format=grad_layout), retain_graph=True)
            torch.testing.assert_close(got, expected_grads)
            assert got[0].is_contiguous(memory_format=layout)


def test_equals_timm():
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    plain, scaled = layers.StdConv2d(6, 9, 3), layers.ScaledStdConv2d(6, 9, 3, gamma=1.7)
    with torch.no_grad():
        scaled.gain.copy_(torch.rand(9, 1, 1, 1) + 0.5)
    unit = torch.eye(6 * 9).reshape(6 * 9, 6, 3, 3)  # the images that read a weight out of a convolution
    for module in (plain, scaled):
        module.padding, module.bias = (0, 0), None
        gain, scale = getattr(module, "gain", None), getattr(module, "scale", 1.0)
        out = ops.standardize_weight(module.weight, gain, scale=scale)
        torch.testing.assert_close(out.flatten(1).T, module(unit).flatten(1), rtol=1e-5, atol=1e-6)
        sources = [module.weight] if gain is None else [module.weight, gain]
        grad = torch.randn_like(unit[:9]).reshape(9, 6, 3, 3)
        theirs = torch.autograd.grad(module(unit).flatten(1).T.reshape(9, 6, 3, 3), sources, grad)
        torch.testing.assert_close(torch.autograd.grad(out, sources, grad), theirs, rtol=1e-4, atol=1e-5)


def test_equals_the_authors_code():
    weight = filters(8, 5, 3, 3, dtype=torch.float32).requires_grad_()
    out, expected = ops.standardize_weight(weight, convention="paper"), qiao_conv2d_weight(weight)
    torch.testing.assert_close(out, expected)
    grad = filters(8, 5, 3, 3, seed=3, dtype=torch.float32)
    ours, theirs = (torch.autograd.grad(result, weight, grad)[0] for result in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_narrow_types_are_computed_wide_and_rounded_once(source, dtype, tolerance):
    weight = filters(16, 24, 3, 3, dtype=source).requires_grad_()
    out = ops.standardize_weight(weight, dtype=dtype, channels_last=True)
    assert out.dtype == dtype
    exact = weight.detach().double().requires_grad_()
    expected = standardize(exact, "timm")
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=2e-6)
    grad = filters(16, 24, 3, 3, seed=4, dtype=dtype)
    out.backward(grad)
    expected.backward(grad.double())
    assert weight.grad.dtype == source
    rounding = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(source, 1e-5)
    torch.testing.assert_close(weight.grad.double(), exact.grad, rtol=rounding, atol=rounding)


def test_a_large_mean_costs_no_accuracy():
    # The mean has an error of 2e-6, a few thousandths of the deviation; E[x^2] - E[x]^2 would lose the deviation altogether.
    weight = (filters(4, 64, 3, 3) * 0.01 + 30).float()
    torch.testing.assert_close(ops.standardize_weight(weight).double(), standardize(weight, "timm"), rtol=1e-2, atol=1e-2)


def resnet_like() -> list[torch.Tensor]:
    return [filters(*shape, seed=i, dtype=torch.float32) for i, shape in enumerate(SHAPES)]


def test_all_layers_in_one_call_forward_and_backward():
    weights = [weight.requires_grad_() for weight in resnet_like()]
    with Calls() as calls:
        results = ops.standardize_weights(weights, dtype=torch.bfloat16, channels_last=True)
        sum(result.float().square().sum() for result in results).backward()
    assert calls.names == ["standardize_weights", "standardize_weights_backward"]
    for weight, result in zip(weights, results, strict=True):
        alone = weight.detach().clone().requires_grad_()
        expected = ops.standardize_weight(alone, dtype=torch.bfloat16, channels_last=True)
        expected.float().square().sum().backward()
        assert torch.equal(result, expected) and torch.equal(weight.grad, alone.grad)


def test_layers_that_differ_are_sorted_into_calls():
    weights = [filters(3, 4, 3, 3, dtype=dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32)]
    gains = [torch.rand(3), None, torch.rand(3), None]
    results = ops.standardize_weights(weights, gains, scales=[1, 2, 3, 4], channels_last=[True, False, True, False])
    for i, result in enumerate(results):
        expected = standardize(weights[i], "timm", None, gains[i], i + 1)
        assert result.dtype == weights[i].dtype
        torch.testing.assert_close(result.double(), expected, rtol=1e-2 if i == 2 else 1e-5, atol=1e-5)
    assert ops.standardize_weights([]) == []


def test_layers_that_took_no_part_get_no_gradient():
    weights = [weight.requires_grad_(i != 4) for i, weight in enumerate(resnet_like())]
    results = ops.standardize_weights(weights)
    (results[1].sum() + results[3].square().sum() + results[4].sum()).backward()
    assert [i for i, weight in enumerate(weights) if weight.grad is not None] == [1, 3]
    gain = torch.rand(4, requires_grad=True)  # and a weight that is not trained leaves its gain trainable
    fixed = filters(4, 3, 3, 3, dtype=torch.float32)
    ops.standardize_weight(fixed, gain).square().sum().backward()
    torch.testing.assert_close(gain.grad, 2 * gain.detach() * ops.standardize_weight(fixed).square().sum((1, 2, 3)))
    assert fixed.grad is None


def test_a_filter_of_one_weight_and_a_constant_filter():
    for convention in ("timm", "paper"):
        single = torch.full((3, 1, 1, 1), 2.5, requires_grad=True)
        constant = torch.full((2, 4, 3, 3), -0.75, requires_grad=True)
        for weight in (single, constant):
            out = ops.standardize_weight(weight, convention=convention)
            assert torch.equal(out, torch.zeros_like(out))
            out.backward(torch.randn_like(out))
            assert weight.grad.isfinite().all()
        assert torch.equal(single.grad, torch.zeros_like(single))


def test_empty_weights():
    for shape in ((0, 3, 3, 3), (4, 0, 3, 3), (0, 0, 1, 1)):
        weight, gain = torch.zeros(shape, requires_grad=True), torch.ones(shape[0], requires_grad=True)
        def run(weight=weight, gain=gain):
            out = ops.standardize_weight(weight, gain)
            out.sum().backward()
            return out

        assert poisoned(run).shape == shape
        assert weight.grad.shape == shape and torch.equal(gain.grad, torch.zeros(shape[0]))


def test_weights_and_gradients_in_any_layout():
    base = filters(12, 20, 5, 6)
    views = {
        "slice of filters": base[::2], "slice of inputs": base[:, 3:-2:2], "slice of taps": base[..., 1:4, ::2],
        "transposed": base.transpose(0, 1), "permuted": base.permute(3, 2, 1, 0), "expanded": base[:1].expand(7, -1, -1, -1),
        "channels-last slice": base.contiguous(memory_format=LAST)[2:9],
        "channels-last taps": base.contiguous(memory_format=LAST)[:, :, 1:3],
        "odd start": base.flatten()[3:363].view(5, 8, 3, 3),
    }  # fmt: skip
    for name, view in views.items():
        weight = view.clone(memory_format=torch.preserve_format).requires_grad_()
        expected = standardize(weight, "timm")
        out = ops.standardize_weight(view)
        torch.testing.assert_close(out, expected.detach(), msg=lambda text, name=name: f"{name}: {text}")
        grad = filters(*reversed(view.shape), seed=5).permute(3, 2, 1, 0)
        for incoming in (grad, torch.ones((), dtype=torch.float64).expand(view.shape), grad[:1].expand(view.shape)):
            leaf = view.detach().requires_grad_()
            got = torch.autograd.grad(ops.standardize_weight(leaf), leaf, incoming)
            torch.testing.assert_close(got, torch.autograd.grad(expected, weight, incoming, retain_graph=True))


def test_nothing_is_read_from_fresh_memory():
    def run():
        weights = [weight.requires_grad_() for weight in resnet_like()]
        gains = [torch.rand(weight.size(0), requires_grad=True) for weight in weights]
        results = ops.standardize_weights(weights, gains, channels_last=True)
        sum(result.square().sum() for result in results).backward()
        return [*results, *(tensor.grad for tensor in (*weights, *gains))]

    assert all(tensor.isfinite().all() for tensor in poisoned(run))


def test_bits_repeat_and_do_not_depend_on_the_number_of_threads():
    weight, grad = filters(100, 64, 3, 3, dtype=torch.float32).requires_grad_(), torch.randn(100, 64, 3, 3)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            out = ops.standardize_weight(weight, channels_last=True)
            seen.append((out, *torch.autograd.grad(out, weight, grad)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other, strict=True))


def test_not_a_number_stays_in_its_filter():
    weight = filters(3, 4, 3, 3)
    weight[1, 2, 0, 0] = float("nan")
    out = ops.standardize_weight(weight)
    assert out[1].isnan().all() and out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("convention", ["timm", "paper"])
@pytest.mark.parametrize("last", [False, True])
def test_gradcheck(convention, last):
    sources = [filters(*shape).requires_grad_() for shape in ((3, 4, 3, 2), (2, 3, 1, 1), (3, 1, 1, 1))]
    gains = [filters(tensor.size(0), 1, 1, 1, seed=2).requires_grad_() for tensor in sources]

    def run(*tensors):
        results = ops.standardize_weights(tensors[:3], tensors[3:], 1e-3, convention, scales=[1, 2, 3], channels_last=last)
        return tuple(results)

    assert torch.autograd.gradcheck(run, (*sources, *gains))


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 4), st.integers(1, 4)),
    convention=st.sampled_from(["timm", "paper"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    last=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_any_shape(shape, convention, dtype, last):
    weight_last, result_last, grad_last = last
    weight = filters(*shape, dtype=dtype, layout=LAST if weight_last else FIRST).requires_grad_()
    exact = weight.detach().double().requires_grad_()
    out = ops.standardize_weight(weight, convention=convention, channels_last=result_last)
    expected = standardize(exact, convention)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(out.double(), expected, **tolerance)
    grad = filters(*shape, seed=6, layout=LAST if grad_last else FIRST)
    out.backward(grad.to(dtype))
    (theirs,) = torch.autograd.grad(expected, exact, grad)
    # Two nearly equal weights have an enormous slope, which fp32 knows only to its own accuracy.
    bound = tolerance["atol"] * max(1.0, theirs.abs().max().item()) * (50 if dtype == torch.float32 else 1)
    assert (weight.grad.double() - theirs).abs().max() <= bound


def test_bad_arguments_name_the_argument():
    weight = torch.zeros(4, 3, 3, 3)
    with pytest.raises(RuntimeError, match=r"weights\[1\]: expected \[O, I, kh, kw\], got \[4, 3\]"):
        ops.standardize_weights([weight, torch.zeros(4, 3)])
    with pytest.raises(RuntimeError, match=r"weights\[0\]: expected fp32, fp64, fp16 or bf16, got int64"):
        ops.standardize_weight(weight.long())
    with pytest.raises(RuntimeError, match=r"gains\[0\]: expected 4 floating numbers .* got fp32 \[3\]"):
        ops.standardize_weight(weight, torch.zeros(3))
    with pytest.raises(RuntimeError, match="eps: expected 0 or more, got -1"):
        ops.standardize_weight(weight, eps=-1)
    with pytest.raises(RuntimeError, match="dtype: expected fp32, fp64, fp16 or bf16, got int64"):
        ops.standardize_weight(weight, dtype=torch.int64)
    with pytest.raises(InputError, match="convention: expected 'timm' or 'paper', got 'keras'"):
        ops.standardize_weight(weight, convention="keras")
    with pytest.raises(InputError, match="scales: expected one for each of 2 weights, got 1"):
        ops.standardize_weights([weight, weight], scales=[1.0])
    backward = torch.ops.fastnas.standardize_weights_backward.default
    stats = torch.zeros(3, 4)
    with pytest.raises(RuntimeError, match=r"grads\[0\]: expected the shape of its weight \[4, 3, 3, 3\], got \[4, 3, 3\]"):
        backward([torch.zeros(4, 3, 3)], [weight], [], [1.0], stats, [0])
    with pytest.raises(RuntimeError, match=r"first_rows\[0\]: expected a row of stats with 4 from it on, got 1"):
        backward([weight], [weight], [], [1.0], stats, [1])


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last):
    weights = [filters(*shape, dtype=torch.float32) for shape in SHAPES[:5]]
    gains = [torch.rand(weight.size(0), 1, 1, 1) for weight in weights]
    scales, flags = [0.5] * 5, [last] * 5
    forward = torch.ops.fastnas.standardize_weights.default
    backward = torch.ops.fastnas.standardize_weights_backward.default
    torch.library.opcheck(forward, (weights, gains, scales, flags, 1e-5, False, torch.bfloat16))
    torch.library.opcheck(forward, (weights, [], scales, flags, 1e-5, True, torch.float64))
    grads, stats = forward(weights, gains, scales, flags, 1e-5, False, torch.bfloat16)
    torch.library.opcheck(backward, (grads, weights, gains, scales, stats, [0, 4, 9, 12, 14]))
    torch.library.opcheck(backward, (grads[:2], weights[:2], [], scales[:2], stats, [0, 4]))


def test_compiles_whole_and_exports():
    weights = [weight.requires_grad_() for weight in resnet_like()[:3]]

    def loss(*tensors):
        results = ops.standardize_weights(tensors, dtype=torch.bfloat16)
        return results[0].float().sum() + results[2].square().float().sum()

    expected = loss(*weights)
    grads = torch.autograd.grad(expected, weights, allow_unused=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*weights)
    torch.testing.assert_close(compiled, expected)
    got = torch.autograd.grad(compiled, weights, allow_unused=True)
    assert grads[1] is None and (got[1] is None or not got[1].any())
    torch.testing.assert_close([got[0], got[2]], [grads[0], grads[2]])

    class Model(torch.nn.Module):
        def forward(self, weight):
            return ops.standardize_weight(weight, channels_last=True)

    program = torch.export.export(Model(), (weights[0].detach(),))
    torch.testing.assert_close(program.module()(weights[0].detach()), Model()(weights[0].detach()))


@pytest.fixture
def gpu() -> str:
    info = ops.build_info()["cuda"]
    if not info["loaded"]:
        pytest.skip(f"CUDA operators: {info['problem']}")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return "cuda"


@pytest.mark.cuda
@pytest.mark.parametrize("weight_last", [False, True])
@pytest.mark.parametrize("result_last", [False, True])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_equals_the_cpu(gpu, source, dtype, weight_last, result_last):
    # One, two and four warps a filter; more layers than a launch takes; filters beyond shared memory, forward and backward.
    shapes = [*SHAPES, (9, 113, 3, 3), (7, 300, 3, 3), (3, 512, 3, 3), (130, 64, 1, 1), (2, 2000, 3, 3), (2, 3000, 3, 3)]
    shapes += [(5, 6, 3, 3)] * 180
    layout = LAST if weight_last else FIRST
    here = [filters(*shape, seed=i, dtype=source, layout=layout).requires_grad_() for i, shape in enumerate(shapes)]
    there = [weight.detach().to(gpu).requires_grad_() for weight in here]
    gains = [torch.rand(shape[0], requires_grad=True) for shape in shapes]
    gpu_gains = [gain.detach().to(gpu).requires_grad_() for gain in gains]
    seen = []
    for weights, factors in ((here, gains), (there, gpu_gains), (there, gpu_gains)):
        for tensor in (*weights, *factors):
            tensor.grad = None
        results = ops.standardize_weights(weights, factors, dtype=dtype, scales=[0.5] * len(shapes), channels_last=result_last)
        grads = [filters(*shape, seed=9, dtype=dtype).to(weights[0].device) for shape in shapes]
        torch.autograd.backward(results, grads)
        seen.append([*results, *(weight.grad for weight in weights), *(factor.grad for factor in factors)])
    for cpu, first, second in zip(*seen, strict=True):
        assert torch.equal(first, second) and first.stride() == cpu.stride()
        rounding = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
        tolerance = max(rounding[source], rounding[dtype])
        torch.testing.assert_close(first.cpu(), cpu, rtol=tolerance, atol=tolerance)


@pytest.mark.cuda
def test_cuda_refuses_fp64_and_serves_graphs(gpu):
    with pytest.raises(RuntimeError, match="weights: expected fp32, fp16 or bf16 on the GPU, got fp64"):
        ops.standardize_weight(torch.zeros(2, 3, 3, 3, device=gpu, dtype=torch.float64))
    weight = filters(8, 16, 3, 3, dtype=torch.float32).to(gpu)
    ops.standardize_weight(weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.standardize_weight(weight, dtype=torch.bfloat16, channels_last=True)
    weight.mul_(-2).add_(1)
    graph.replay()
    torch.testing.assert_close(out.float(), ops.standardize_weight(weight), rtol=1e-2, atol=1e-2)
