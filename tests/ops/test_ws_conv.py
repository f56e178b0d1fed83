"""ws_conv_gn, its modules and the scope that shares standardised weights, against timm and float64; nothing may be stale."""

import copy
import pickle
from io import BytesIO

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastnas import ops
from fastnas.errors import FastnasError
from tests.ops.reference_weights import standardize
from tests.ops.test_standardize_weight import Calls

LAST, FIRST = torch.channels_last, torch.contiguous_format


class Block(nn.Module):
    """A residual block of two layers and a scaled, biased convolution: everything that a scope can meet."""

    def __init__(self, channels: int = 8):
        super().__init__()
        self.first = ops.WSConvGN(channels, channels, 3, gn_groups=4, activation="silu")
        self.second = ops.WSConvGN(channels, channels, 1, gn_groups=2)
        self.last = ops.WSConv2d(channels, 4, 3, scaled=True, gamma=1.2)

    def forward(self, x):
        return self.last(self.second(self.first(x), x))


def block(seed: int = 0) -> Block:
    torch.manual_seed(seed)
    return Block()


def image(*shape: int, layout=LAST, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(shape or (2, 8, 7, 9), generator=generator)
    return values.to(dtype).contiguous(memory_format=layout)


def gradients(model: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ----------------------------------------------------------------------------------------------------------------------
# The layer


@pytest.mark.parametrize("layout", [FIRST, LAST])
@pytest.mark.parametrize("scaled", [False, True])
def test_equals_timm(scaled, layout):
    torch.manual_seed(0)
    kind = timm.layers.ScaledStdConv2d if scaled else timm.layers.StdConv2d
    theirs = nn.Sequential(kind(8, 16, 3, stride=2, bias=True), timm.layers.GroupNormAct(16, 4, act_layer=nn.SiLU))
    ours = ops.WSConvGN(8, 16, 3, stride=2, bias=True, gn_groups=4, activation="silu", scaled=scaled)
    ours.conv.load_state_dict(theirs[0].state_dict())
    ours.norm.load_state_dict(theirs[1].state_dict())
    x = image(2, 8, 11, 10, layout=layout)
    out, expected = ours(x), theirs(x)
    close(out, expected)
    assert out.is_contiguous(memory_format=layout)
    grad = torch.randn_like(expected)
    out.backward(grad)
    expected.backward(grad)
    for a, b in zip([*ours.conv.parameters(), *ours.norm.parameters()], theirs.parameters(), strict=True):
        close(a.grad, b.grad, 1e-4)


@pytest.mark.parametrize("convention", ["timm", "paper"])
def test_function_equals_float64(convention):
    x, weight = image(2, 6, 9, 8).double().requires_grad_(), image(12, 3, 3, 3).double().requires_grad_()
    gain, bias, gamma, beta = (image(12, 1, 1, 1).double().add(i).flatten().requires_grad_() for i in range(4))
    residual = image(2, 12, 5, 4).double().requires_grad_()
    out = ops.ws_conv_gn(
        x, weight, 4, gamma, beta, bias=bias, stride=2, padding=1, groups=2, activation="relu", residual=residual, gain=gain,
        scale=0.3, convention=convention, gn_eps=1e-3,
    )  # fmt: skip
    features = F.conv2d(x, standardize(weight, convention, None, gain, 0.3), bias, 2, 1, 1, 2)
    expected = F.relu(F.group_norm(features, 4, gamma, beta, 1e-3) + residual)
    torch.testing.assert_close(out, expected)
    sources, grad = [x, weight, gain, bias, gamma, beta, residual], image(*out.shape).double()
    torch.testing.assert_close(torch.autograd.grad(out, sources, grad), torch.autograd.grad(expected, sources, grad))


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16(autocast):
    model, exact = block(), block().double()
    x = image() if autocast else image(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(x)
    assert out.dtype == torch.bfloat16
    expected = exact(x.double())
    assert (out - expected).norm() < 0.02 * expected.norm()
    out.float().square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        assert ours.grad.dtype == torch.float32
        assert (ours.grad - theirs.grad).norm() < 0.05 * theirs.grad.norm()


def test_drop_in_for_conv2d():
    plain = nn.Conv2d(4, 6, (3, 5), 2, "valid", groups=2, padding_mode="zeros")
    ours = ops.WSConv2d(4, 6, (3, 5), 2, "valid", groups=2, padding_mode="zeros")
    ours.load_state_dict(plain.state_dict())
    assert list(ours.state_dict()) == list(plain.state_dict()) and "convention='timm'" in repr(ours)
    circular = ops.WSConv2d(4, 6, 3, padding=1, padding_mode="circular")
    x = image(1, 4, 8, 8)
    expected = F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), standardize(circular.weight, "timm").float(), circular.bias)
    close(circular(x), expected)
    close(circular(x[0]), expected[0])


def test_fold():
    model = block().eval()
    folded = ops.fold_standardized(model)
    assert not any(isinstance(layer, ops.WSConv2d) for layer in folded.modules())
    assert sum(isinstance(layer, ops.WSConv2d) for layer in model.modules()) == 3
    expected = model(image())
    with Calls() as calls:
        close(folded(image()), expected)
        close(model.first.fold()(image()), model.first(image()))
    assert calls.names.count("standardize_weights") == 2  # the fold and the model beside it
    with torch.no_grad():
        model.first.conv.weight.mul_(-1)
    close(folded(image()), expected)
    assert list(model.last.fold().state_dict()) == ["weight", "bias"]


# ----------------------------------------------------------------------------------------------------------------------
# The scope


def test_scope_makes_all_weights_in_one_call_per_kind():
    model, expected = block(), block()
    for _ in range(3):
        expected(image()).square().sum().backward()
    with Calls() as calls, ops.standardized(model):
        for _ in range(3):
            model(image()).square().sum().backward()
        assert model.first.conv.weight.grad is None
    # Two layers without gain and one with: two calls each way for three micro-batches.
    assert calls.names.count("standardize_weights") == calls.names.count("standardize_weights_backward") == 2
    close(gradients(model), gradients(expected), 1e-4)
    assert model.first.conv._held is None


def test_scope_adds_micro_batches_in_fp32_and_keeps_earlier_gradients():
    model, expected = block(), block()
    for each in (model, expected):
        each(image()).sum().backward()
    with ops.standardized(model, torch.bfloat16), torch.autocast("cpu", torch.bfloat16):
        for _ in range(8):
            model(image()).float().square().sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(8):
            expected(image()).float().square().sum().backward()
    for ours, theirs in zip(gradients(model).values(), gradients(expected).values(), strict=True):
        assert (ours - theirs).norm() < 1e-2 * theirs.norm()


@pytest.mark.parametrize("reentrant", [False, True])
def test_scope_serves_recomputation(reentrant):
    model, expected = block(), block()
    expected(image()).square().sum().backward()

    def run():
        x = image().requires_grad_()  # a reentrant checkpoint needs an input with a gradient
        hidden = checkpoint(model.first, x, use_reentrant=reentrant)
        hidden = checkpoint(model.second, hidden, x, use_reentrant=reentrant)
        model.last(hidden).square().sum().backward()

    with Calls() as calls, ops.standardized(model):
        run()
    assert calls.names.count("standardize_weights") == 2
    close(gradients(model), gradients(expected), 1e-4)
    model.zero_grad()
    run()  # and without a scope
    close(gradients(model), gradients(expected), 1e-4)


def test_scope_leaves_unused_and_frozen_layers_without_gradient():
    model = block()
    model.second.conv.weight.requires_grad_(False)
    with ops.standardized(model):
        model.first(image()).sum().backward()
    assert model.last.weight.grad is None and model.last.gain.grad is None and model.second.conv.weight.grad is None
    assert model.first.conv.weight.grad is not None


def test_scope_runs_parameter_hooks_and_serves_computed_weights():
    model, seen = block(), []
    model.first.conv.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.clone()))
    with ops.standardized(model):
        model(image()).sum().backward()
    assert len(seen) == 1 and torch.equal(seen[0], model.first.conv.weight.grad)


def test_scopes_nest_and_end_after_an_exception():
    model, other = block(), block(1)
    with ops.standardized(model):
        outer = model.last._held
        with ops.standardized(nn.ModuleList([model, other])):
            assert model.last._held is not outer and other.last._held is not None
        assert model.last._held is outer
    with pytest.raises(ZeroDivisionError), ops.standardized(model):
        model(image()).sum().backward()
        raise ZeroDivisionError
    assert model.last._held is None and model.first.conv.weight.grad is None


def test_leaving_too_early_or_stepping_too_early_is_an_error():
    model = block()
    with ops.standardized(model):
        loss = model(image()).sum()
    with pytest.raises(FastnasError, match=r"backward\(\) after the end of the scope"):
        loss.backward()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(FastnasError, match="step the optimiser after"), ops.standardized(model):
        model(image()).sum().backward()
        model.first.conv.weight.grad = torch.ones_like(model.first.conv.weight)
        optimiser.step()
    with pytest.raises(FastnasError, match="before the step of the optimiser"), ops.standardized(model):
        model(image()).sum().backward()
        model.first.conv.weight.grad = torch.ones_like(model.first.conv.weight)
        optimiser.step()
        model(image())


def test_no_memory_is_kept():
    import gc
    import weakref

    model = block()
    gc.collect()
    gc.disable()
    try:
        with ops.standardized(model):
            model(image()).sum().backward()
            value = weakref.ref(model.first.conv._held.value)
        assert value() is None
    finally:
        gc.enable()


# ----------------------------------------------------------------------------------------------------------------------
# Nothing is stale: the layer is used inside a scope, its weight changes, it is used again


def by_optimiser(**options):
    def change(model):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(model.parameters(), lr=0.3, **options).step()

    return change


def by_compiled_optimiser(model):
    optimiser = torch.optim.SGD(model.parameters(), 0.3)
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, i).add_(torch.rand_like(parameter))
    torch.compile(optimiser.step, backend="aot_eager")()


def by_state_dict(model):
    model.load_state_dict(block(5).state_dict())


def by_assigned_state_dict(model):
    model.load_state_dict(block(5).state_dict(), assign=True)


def by_data(model):
    for parameter in model.parameters():
        parameter.data = torch.rand_like(parameter)


def by_data_twice(model):  # the first memory is free again when the second is taken
    for _ in range(4):
        by_data(model)


def by_to(model):
    model.to(torch.float64).to(torch.float32)
    for parameter in model.parameters():
        parameter.data.mul_(torch.rand_like(parameter))  # in new memory


def by_copy(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand_like(parameter))


def by_foreach_lerp(model):
    with torch.no_grad():
        torch._foreach_lerp_(list(model.parameters()), [torch.rand_like(p) for p in model.parameters()], 0.5)


def by_detached(model):
    for parameter in model.parameters():
        parameter.detach().uniform_()


def by_state_dict_values(model):  # as many moving averages write
    for value in model.state_dict().values():
        value.uniform_()


def by_averaged_model(model):
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(block(6))
    averaged.update_parameters(block(7))
    model.load_state_dict(averaged.module.state_dict())


def by_inference_mode(model):
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.uniform_()


def by_new_parameter(model):
    for layer in (model.first.conv, model.second.conv, model.last):
        layer.weight = nn.Parameter(torch.rand_like(layer.weight))


def by_swap(model):
    for layer in (model.first.conv, model.second.conv, model.last):
        torch.utils.swap_tensors(layer.weight, nn.Parameter(torch.rand_like(layer.weight)))


CHANGES = [
    by_optimiser(foreach=False), by_optimiser(foreach=True), by_optimiser(fused=True), by_compiled_optimiser, by_state_dict,
    by_assigned_state_dict, by_data, by_data_twice, by_to, by_copy, by_foreach_lerp, by_detached, by_state_dict_values,
    by_averaged_model, by_inference_mode, by_new_parameter, by_swap,
]  # fmt: skip
IDS = ["adamw", "adamw foreach", "adamw fused", *(change.__name__ for change in CHANGES[3:])]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("change", CHANGES, ids=IDS)
def test_changed_weights_are_noticed(change, mode):
    model = block()
    with mode(), ops.standardized(model):
        before = model(image()).detach()
        with torch.inference_mode(False), torch.enable_grad():
            change(model)
        after = model(image()).detach()
        fresh = copy.deepcopy(model)
        assert fresh.last._held is None
        close(after, fresh(image()).detach())
    assert (after - before).abs().max() > 1e-2


def test_copies_and_pickles_are_their_own():
    model = block().eval()
    with torch.no_grad(), ops.standardized(model):
        expected = model(image())
        copies = [copy.deepcopy(model), copy.copy(model.last), pickle.loads(pickle.dumps(model))]
        saved = BytesIO()
        torch.save(model, saved)
        saved.seek(0)
        copies.append(torch.load(saved, weights_only=False))
        for other in (copies[0], copies[2], copies[3]):
            assert other.last._held is None
            close(other(image()), expected)
            by_copy(other)
            assert (other(image()) - expected).abs().max() > 1e-2
        assert copies[1]._held is None
        close(model(image()), expected)


def test_a_scope_without_gradients_loses_none():
    model, expected = block(), block()
    expected(image()).square().sum().backward()
    for mode in (torch.no_grad, torch.inference_mode):
        model.zero_grad()
        with mode(), ops.standardized(model):
            model(image())
            with torch.inference_mode(False), torch.enable_grad():
                model(image()).square().sum().backward()
        close(gradients(model), gradients(expected), 1e-4)


def test_weights_made_in_inference_mode_are_never_held():
    with torch.inference_mode():
        model = block()
        with ops.standardized(model):
            before = model(image())
            by_copy(model)
            after = model(image())
            close(after, copy.deepcopy(model)(image()))
    assert (after - before).abs().max() > 1e-2


def test_functional_call_uses_the_weights_given():
    model, other = block(), block(3)
    with ops.standardized(model):
        model(image()).sum().backward()
        out = torch.func.functional_call(model, dict(other.named_parameters()), (image(),))
    close(out, other(image()))


def test_scope_converts_types_and_layouts():
    model = block()
    with torch.no_grad():
        expected = model(image())
        with ops.standardized(model, torch.bfloat16, channels_last=False):
            out = model(image(layout=FIRST))
            assert out.is_contiguous() and out.dtype == torch.float32
            assert (out - expected).norm() < 0.02 * expected.norm()
            assert model(image()).is_contiguous(memory_format=LAST)


# ----------------------------------------------------------------------------------------------------------------------
# torch.compile and torch.export


def test_compiles_whole_and_takes_nothing_from_a_scope():
    model = block()
    expected = model(image())
    expected.square().sum().backward()
    wanted = gradients(model)
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with ops.standardized(model):
        out = compiled(image())
        out.square().sum().backward()
    close(out, expected)
    close(gradients(model), wanted, 1e-4)
    by_copy(model)
    close(compiled(image()), model(image()))


def test_exports():
    model = block().eval()
    with torch.no_grad(), ops.standardized(model):
        expected = model(image())
        program = torch.export.export(model, (image(),))
    close(program.module()(image()), expected)
    names = [str(node.target) for node in program.graph.nodes]
    assert sum("standardize_weights" in name for name in names) == 3


# ----------------------------------------------------------------------------------------------------------------------
# GPU


@pytest.fixture
def gpu() -> str:
    info = ops.build_info()["cuda"]
    if not info["loaded"]:
        pytest.skip(f"CUDA operators: {info['problem']}")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return "cuda"


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_equals_the_cpu(gpu, dtype):
    here, there = block(), block().to(gpu)
    for model, device in ((here, "cpu"), (there, gpu)):
        with ops.standardized(model, dtype):
            for _ in range(2):
                model(image(dtype=dtype).to(device)).float().square().mean().backward()
    tolerance = 1e-3 if dtype == torch.float32 else 0.05
    for cpu, cuda in zip(gradients(here).values(), gradients(there).values(), strict=True):
        assert (cuda.cpu() - cpu).norm() <= tolerance * cpu.norm() + 1e-6


@pytest.mark.cuda
def test_cuda_graphs_standardise_inside_the_graph(gpu):
    model, x = block().to(gpu).eval(), image().to(gpu)
    with torch.no_grad(), ops.standardized(model):
        model(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(x)
    by_copy(model)
    graph.replay()
    close(out, model(x).detach(), 1e-3)
