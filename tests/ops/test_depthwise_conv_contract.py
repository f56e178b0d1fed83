"""depthwise_conv2d as a module and as an operator of torch: state dicts, autocast, refusals, opcheck, compile, export."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastnas import ops
from tests.ops.norm_problems import LAYOUTS, random
from tests.ops.test_depthwise_conv import arguments


@pytest.mark.parametrize("bias", [True, False])
def test_the_module_is_a_conv2d(bias):
    torch.manual_seed(0)
    own = ops.DepthwiseConv2d(16, (3, 5), 2, (1, 2), bias)
    other = nn.Conv2d(16, 16, (3, 5), 2, (1, 2), groups=16, bias=bias)
    assert isinstance(own, nn.Conv2d) and own.state_dict().keys() == other.state_dict().keys()
    own.load_state_dict(other.state_dict())
    input = random(2, 16, 9, 8, dtype=torch.float32)
    torch.testing.assert_close(own(input), other(input))
    for twin in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert torch.equal(twin(input), own(input))
    same = ops.DepthwiseConv2d(16, 3, 2, "same")
    assert same(input).shape == (2, 16, 5, 4) and "same" in repr(same)


def test_a_norm_folds_into_the_module():
    conv, norm = ops.DepthwiseConv2d(8, 3, 2, "same", bias=False).eval(), nn.BatchNorm2d(8).eval()
    for values in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(values)
    input = random(2, 8, 10, 10, dtype=torch.float32)
    folded = fuse_conv_bn_eval(conv, norm)
    assert type(folded) is ops.DepthwiseConv2d
    torch.testing.assert_close(folded(input), norm(conv(input)))


@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("kernel", [3, 5])
def test_under_autocast(kernel, padding):
    torch.manual_seed(0)
    module = ops.DepthwiseConv2d(16, kernel, 2, padding)
    input = random(2, 16, 12, 12, dtype=torch.float32, layout=torch.channels_last).requires_grad_()
    exact = module(input)
    wanted = torch.autograd.grad(exact.sum(), (input, *module.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        out = module(input)
    assert out.dtype == torch.bfloat16
    gradients = torch.autograd.grad(out.float().sum(), (input, *module.parameters()))
    for own, other in zip((out, *gradients), (exact, *wanted), strict=True):
        assert (own - other).norm() < 0.02 * other.norm()
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.double()(input.double()).dtype == torch.float64  # as torch's own convolution


def test_on_the_meta_device():
    module = ops.DepthwiseConv2d(16, 3, 2, "same", device="meta")
    assert module(torch.empty(2, 16, 9, 8, device="meta")).shape == (2, 16, 5, 4)


def test_bad_arguments_name_the_argument():
    input, weight, bias = (value.detach() for value in arguments((2, 8, 4, 4), (5, 5), torch.float32, torch.channels_last))
    cases = [
        ((input[0], weight), {}, r"input: expected \[N, C, H, W\], got \[8, 4, 4\]"),
        ((input.int(), weight), {"padding": 2}, "input: expected fp32, fp64, fp16 or bf16, got torch.int32"),
        ((input, weight[:7]), {"padding": 2}, r"weight: expected \[8, 1, kh, kw\], got \[7, 1, 5, 5\]"),
        ((input, weight.expand(8, 2, 5, 5)), {"padding": 2}, r"weight: expected \[8, 1, kh, kw\], got \[8, 2, 5, 5\]"),
        ((input, weight.int()), {"padding": 2}, "weight: expected fp32, fp64, fp16 or bf16, got torch.int32"),
        ((input, weight, bias[:7]), {"padding": 2}, r"bias: expected \[8\], got \[7\]"),
        ((input, weight, bias), {"stride": 0}, "stride: expected one or two positive numbers, got 0"),
        ((input, weight, bias), {"padding": (1, 1, 1)}, "padding: expected one, two or four numbers"),
        ((input, weight, bias), {"padding": "valid"}, 'padding: expected numbers or "same", got "valid"'),
        ((input, weight, bias), {"padding": (0, -1, 2, 2)}, "padding: expected four numbers .*, none of them negative"),
        ((input, weight, bias), {"padding": (0, 0, 2, 1)}, "input: expected a map .* kernel 5 x 5, got 4 x 4"),
    ]
    for args, keywords, message in cases:
        with pytest.raises(RuntimeError, match=message):
            ops.depthwise_conv2d(*args, **{"padding": (2, 1, 2, 2), **keywords})
    backward = torch.ops.fastnas.depthwise_conv2d_backward
    with pytest.raises(RuntimeError, match=r"grad: expected \[2, 8, 4, 4\], got \[1, 8, 4, 4\]"):
        backward(input[:1], input, weight, [1, 1], [2] * 4, [True] * 3)
    with pytest.raises(RuntimeError, match="weight: expected fp32, fp64, fp16 or bf16, got int32"):
        backward(input, input, weight.int(), [1, 1], [2] * 4, [True] * 3)
    with pytest.raises(RuntimeError, match="wanted: expected three answers"):
        backward(input, input, weight, [1, 1], [2] * 4, [True] * 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    input, weight, bias = (value.detach() for value in arguments((2, 8, 6, 7), (3, 3), torch.bfloat16, layout))
    forward, backward = torch.ops.fastnas.depthwise_conv2d.default, torch.ops.fastnas.depthwise_conv2d_backward.default
    for given_bias in (bias, None):
        torch.library.opcheck(forward, (input, weight, given_bias, [2, 1], [0, 1, 2, 1]))
    grad = forward(input, weight, bias, [2, 1], [0, 1, 2, 1])
    for wanted in ([True] * 3, [False, True, False], [True, False, False], [False, False, True]):
        torch.library.opcheck(backward, (grad, input, weight, [2, 1], [0, 1, 2, 1], wanted))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (5, 2), (3, "same")])
def test_compiles_and_exports_whole(kernel, padding, layout):
    torch.manual_seed(0)
    module = ops.DepthwiseConv2d(16, kernel, 2, padding)
    input = random(2, 16, 10, 8, dtype=torch.float32, layout=layout).requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    results = [run(input) for run in (module, compiled)]
    torch.testing.assert_close(*results, rtol=0, atol=0)
    gradient = random(*results[0].shape, seed=2, dtype=torch.float32)
    gradients = [torch.autograd.grad(out, (input, *module.parameters()), gradient) for out in results]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
    exported = torch.export.export(module.eval(), (input.detach(),))
    torch.testing.assert_close(exported.module()(input), results[0], rtol=0, atol=0)


@pytest.mark.cuda
@pytest.mark.parametrize("padding", [1, "same"])
def test_on_a_gpu_it_is_the_library_s(padding):
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU here")
    module = ops.DepthwiseConv2d(16, 3, 2, padding)
    input = random(2, 16, 9, 8, dtype=torch.float32)
    expected = module(input)
    module.cuda()
    torch.testing.assert_close(module(input.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        out = module(input.cuda())
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert module.weight.grad.dtype == torch.float32
    assert F.conv2d(input.cuda(), module.weight, module.bias, 2, 1, groups=16).shape == expected.shape
