"""ws_conv_gn and its modules against timm and float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastnas import ops
from tests.ops.reference_weights import standardize
from tests.ops.test_standardize_weight import Calls
from tests.ops.ws_block import FIRST, LAST, block, close, gradients, image


@pytest.mark.parametrize("layout", [FIRST, LAST])
@pytest.mark.parametrize("scaled", [False, True])
def test_equals_timm(scaled, layout):
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    torch.manual_seed(0)
    kind = layers.ScaledStdConv2d if scaled else layers.StdConv2d
    theirs = nn.Sequential(kind(8, 16, 3, stride=2, bias=True), layers.GroupNormAct(16, 4, act_layer=nn.SiLU))
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
    with torch.no_grad():
        model.last.weight.neg_()
    close(compiled(image()), model(image()))


def test_exports():
    model = block().eval()
    with torch.no_grad(), ops.standardized(model):
        expected = model(image())
        program = torch.export.export(model, (image(),))
    close(program.module()(image()), expected)
    names = [str(node.target) for node in program.graph.nodes]
    assert sum("standardize_weights" in name for name in names) == 3


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
    with torch.no_grad():
        model.last.weight.neg_()
    graph.replay()
    close(out, model(x).detach(), 1e-3)
