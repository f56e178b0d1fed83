"""The scope that shares standardised weights: its gradients are those without it, and nothing is ever stale."""

import copy
import gc
import pickle
import weakref
from io import BytesIO

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastnas import ops
from fastnas.errors import FastnasError
from tests.ops.test_standardize_weight import Calls
from tests.ops.ws_block import FIRST, LAST, block, close, gradients, image


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


def test_scope_runs_the_hooks_of_parameters():
    model, seen = block(), []
    model.first.conv.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.clone()))
    with ops.standardized(model):
        model(image()).sum().backward()
    assert len(seen) == 1 and torch.equal(seen[0], model.first.conv.weight.grad)


def test_computed_weights_are_never_shared():
    models = [block(), block()]
    for model in models:
        torch.nn.utils.parametrizations.weight_norm(model.first.conv)
    models[1](image()).square().sum().backward()
    with ops.standardized(models[0]):
        models[0](image()).square().sum().backward()
    close(gradients(models[0]), gradients(models[1]), 1e-4)


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
