"""group_norm_act as a module and as an operator of torch: state dicts, refusals, opcheck, compile, export."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from fastnas import ops
from tests.ops.norm_problems import DEVICES, LAYOUTS, arguments, random

pytestmark = pytest.mark.usefixtures("gpu_if_marked")


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
