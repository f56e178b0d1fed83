"""batch_norm_act as a module and as an operator of torch: its backward pass, state dicts, refusals, opcheck, compile, export."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from fastnas import ops
from fastnas.ops.batch_norm import IN_PLACE
from tests.ops.norm_problems import LAYOUTS, arguments, random

ACTIVATIONS = ["none", "relu", "relu6", "silu"]


def norm(values, activation, training=True):
    input, weight, bias, residual = values
    statistics = (None, None) if training else (torch.full((input.size(1),), 2.5), torch.full((input.size(1),), 1.5))
    return ops.batch_norm_act(input, *statistics, weight, bias, training, 0.1, 1e-3, activation, residual)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation, training, layout):
    input, weight, bias, residual = arguments((2, 4, 3, 2), torch.float64, layout, True)
    for values in ((input, weight, bias, residual), (input, weight, bias, None), (input, None, None, residual)):
        given_values = [value for value in values if value is not None]

        def run(*args, values=values):
            left = list(args)
            return norm([None if value is None else left.pop(0) for value in values], activation, training)

        assert torch.autograd.gradcheck(run, given_values)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_only_wanted_gradients(activation, training):
    everything = arguments((2, 8, 6, 5), torch.float32, residual=True)
    expected = torch.autograd.grad(norm(everything, activation, training).square().sum(), everything)
    for mask in range(1, 16):
        values = [value.detach().requires_grad_(bool(mask >> i & 1)) for i, value in enumerate(everything)]
        norm(values, activation, training).square().sum().backward()
        for value, gradient in zip(values, expected, strict=True):
            assert (value.grad is not None) == value.requires_grad
            if value.requires_grad:
                torch.testing.assert_close(value.grad, gradient, rtol=1e-5, atol=1e-5)


def test_what_is_kept_for_the_backward_pass():
    for activation, residual in (("none", True), ("relu", False), ("silu", False), ("relu", True), ("silu", True)):
        values, kept = arguments((2, 8, 16, 16), torch.float32, residual=residual), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            out = norm(values, activation)
        maps = [t for t in kept if t.dim() == 4]
        expected = [values[0]] + ([out if activation == "relu" else values[3]] if residual and activation != "none" else [])
        assert [t.data_ptr() for t in maps] == [t.data_ptr() for t in expected]
        assert sum(t.numel() for t in kept if t.dim() != 4) == 4 * 8  # mean, rstd, weight, bias


def test_no_gradient_of_gradients_and_none_without_grad_mode():
    input = random(2, 8, 4, 4).requires_grad_()
    with torch.no_grad():
        assert not norm((input, None, None, None), "relu").requires_grad
    (gradient,) = torch.autograd.grad(norm((input, None, None, None), "none").pow(3).sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 64, 70, 90), (3, 24, 50, 41), (90, 256, 7, 7)])
def test_the_same_bits_for_any_number_of_threads(shape, layout):
    values = arguments(shape, torch.float32, layout, True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = norm(values, "silu")
            results.append((out, *torch.autograd.grad(out.square().sum(), values)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_the_module_is_a_batch_norm(track, affine, momentum):
    own = ops.BatchNormAct(16, 1e-3, momentum, affine, track, "relu")
    other = torch.nn.BatchNorm2d(16, 1e-3, momentum, affine, track)
    assert own.state_dict().keys() == other.state_dict().keys()
    if affine:
        other.weight.data.uniform_(-1, 1)
        other.bias.data.uniform_(-1, 1)
    own.load_state_dict(other.state_dict())
    for seed in range(3):
        input, residual = (random(2, 16, 5, 5, seed=2 * seed + i, dtype=torch.float32) for i in range(2))
        torch.testing.assert_close(own(input), F.relu(other(input)))
        torch.testing.assert_close(own(input, residual), F.relu(other(input) + residual))
    torch.testing.assert_close(own.state_dict(), other.state_dict())
    own.eval(), other.eval()
    torch.testing.assert_close(own(input, residual), F.relu(other(input) + residual))
    torch.testing.assert_close(own.state_dict(), other.state_dict())
    assert "activation='relu'" in repr(own)
    for twin in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert torch.equal(twin(input), own(input))
    with pytest.raises(ValueError, match="expected 4D input"):
        own(input[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_where_nothing_needs_a_gradient(dtype, layout):
    own, other = (ops.BatchNormAct(16, activation="relu", inplace=inplace).eval() for inplace in (True, False))
    for module in (own, other):
        module.running_mean += 0.5
    for shape in ((2, 16, 5, 5), (2, 16, 1, 1), (1, 16, 70, 101)):
        input, residual = (random(*shape, seed=seed, dtype=dtype, layout=layout) for seed in range(2))
        for more in ((), (residual,)):
            expected, given = other(input, *more).detach(), input.clone()
            assert not torch.equal(own(given, *more), given), "the parameters need gradients"
            with torch.no_grad():
                gapped = torch.cat([given, given], 3)[..., : shape[3]]
                assert torch.equal(own(gapped, *more), expected) and torch.equal(gapped, given)
                assert own(given, *more) is given and torch.equal(given, expected)
                copy.deepcopy(own).train()(given, *more)
                assert torch.equal(given, expected)


def test_under_autocast_the_map_keeps_its_type():
    module, input = ops.BatchNormAct(8, activation="silu"), random(2, 8, 5, 5, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(input).dtype == torch.bfloat16 and module(input.float()).dtype == torch.float32
    assert module.running_mean.dtype == torch.float32


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_other_devices_compose(activation):
    # The meta device stands for all of them: it computes nothing, but it takes the same way.
    module = ops.BatchNormAct(8, activation=activation, device="meta")
    input = torch.empty(2, 8, 5, 6, device="meta")
    assert module(input, input).shape == input.shape
    with pytest.raises(RuntimeError, match="activation: expected none, relu, relu6 or silu, got gelu"):
        ops.batch_norm_act(input, None, None, training=True, activation="gelu")
    values = arguments((2, 8, 5, 6), torch.float32, residual=True)
    composed = F.batch_norm(values[0], None, None, values[1], values[2], True, 0.1, 1e-3) + values[3]
    torch.testing.assert_close(norm(values, activation), IN_PLACE[activation](composed), rtol=1e-5, atol=1e-5)


def test_bad_arguments_name_the_argument():
    input, channels = random(2, 8, 4, 4, dtype=torch.float32), torch.ones(8)
    running = (channels, channels)
    cases = [
        ((input[0, 0, 0], *running), {}, r"input: expected \[N, C, \.\.\.\], got \[4\]"),
        ((input.int(), *running), {}, "input: expected fp32, fp64, fp16 or bf16, got int32"),
        ((input, channels[:7], channels), {}, r"running_mean: expected \[8\], got \[7\]"),
        ((input, channels, channels[:7]), {}, r"running_var: expected \[8\], got \[7\]"),
        ((input, channels[:7], channels), {"training": True}, r"running_mean: expected \[8\], got \[7\]"),
        ((input, None, channels), {}, "running_mean, running_var: expected both where training is False"),
        ((input, *running, channels[:7]), {}, r"weight: expected \[8\], got \[7\]"),
        ((input, *running, channels, channels.int()), {}, "bias: expected fp32, fp64, fp16 or bf16, got int32"),
        ((input, *running), {"activation": "gelu"}, "activation: expected none, relu, relu6 or silu, got gelu"),
        ((input, *running), {"eps": -1e-5}, "eps: expected a number that is not negative, got -1e-05"),
        ((input, *running), {"residual": input[:1]}, r"residual: expected \[2, 8, 4, 4\] like input, got \[1, 8, 4, 4\]"),
        ((input[:, :, 0], *running), {"residual": input}, r"residual: expected \[2, 8, 4\] like input"),
    ]
    for args, keywords, message in cases:
        with pytest.raises(RuntimeError, match=message):
            ops.batch_norm_act(*args, **keywords)
    backward, tail = torch.ops.fastnas.batch_norm_act_backward, (False, "relu")
    for args, message in (
        ((input[:1], input, channels, channels, None, None, *tail, None, [True, False, False, False]), "grad: expected"),
        ((input, input, channels[:1], channels, None, None, *tail, None, [True] * 4), r"mean: expected \[8\]"),
        ((input, input, channels, channels.double(), None, None, *tail, None, [True] * 4), "rstd: expected fp32"),
        ((input, input, channels, channels, None, None, *tail, None, [True, True, False, False]), "there is no weight"),
        ((input, input, channels, channels, None, None, *tail, None, [False, False, False, True]), "from the third map"),
        ((input, input, channels, channels, None, None, *tail, input.double(), [True] + [False] * 3), "third: expected the"),
        ((input, input, channels, channels, None, None, False, "none", input, [True] + [False] * 3), "third: expected none"),
    ):
        with pytest.raises(RuntimeError, match=message):
            backward(*args)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    input, weight, bias, residual = (value.detach() for value in arguments((2, 8, 5, 6), torch.float32, layout, True))
    forward, backward = torch.ops.fastnas.batch_norm_act.default, torch.ops.fastnas.batch_norm_act_backward.default
    for statistics in ((None, None), (bias, weight.abs())):
        for args in ((weight, bias, 1e-5, "relu6", residual), (None, None, 1e-5, "none", None)):
            torch.library.opcheck(forward, (input, *statistics, *args))
    in_place = torch.ops.fastnas.batch_norm_act_.default
    torch.library.opcheck(in_place, (input.clone(), bias, weight.abs(), weight, bias, 1e-5, "relu", residual))
    _, mean, rstd, _ = forward(input, None, None, weight, bias, 1e-5, "silu", residual)
    for wanted in ([True] * 4, [False, True, False, True], [True, False, False, False]):
        for frozen in (False, True):
            args = (residual, input, mean, rstd, weight, bias, frozen, "silu", residual, wanted)
            torch.library.opcheck(backward, args)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_and_exports_whole(layout, training):
    module = ops.BatchNormAct(16, activation="silu").train(training)
    twin = copy.deepcopy(module)
    input = random(2, 16, 6, 7, dtype=torch.float32, layout=layout).requires_grad_()
    residual = random(2, 16, 6, 7, seed=1, dtype=torch.float32).requires_grad_()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager", dynamic=True)
    gradient = random(2, 16, 6, 7, seed=2, dtype=torch.float32)
    results = [run(input, residual) for run in (module, compiled)]
    torch.testing.assert_close(*results, rtol=0, atol=0)
    gradients = [
        torch.autograd.grad(out, (input, residual, *owner.parameters()), gradient)
        for out, owner in zip(results, (module, twin), strict=True)
    ]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
    torch.testing.assert_close(dict(module.named_buffers()), dict(twin.named_buffers()), rtol=0, atol=0)
    assert module.num_batches_tracked == training
    module.eval().requires_grad_(False).inplace = True
    exported = torch.export.export(module, (input.detach(), residual.detach()))
    expected = module(input.detach().clone(), residual.detach())
    torch.testing.assert_close(exported.module()(input.detach(), residual.detach()), expected, rtol=0, atol=0)
