"""weighted_fusion on a GPU: the same numbers as the CPU's, which are tested against effdet, torch and the reference."""

import pytest
import torch
import torch.nn.functional as F

from fastnas import ops
from tests.ops.fusion_nodes import LAYOUTS, UP, copies, maps, some_weights

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
CUDA_NODES = [
    [(64, 64), (32, 32)],
    [(64, 64), (128, 128)],
    [(64, 64), (64, 64), (128, 128)],
    [(16, 16), (8, 8), (32, 32)],
    [(17, 23), (9, 12), (33, 45)],
    [(17, 23), (8, 11), (34, 46)],
    [(8, 8), (16, 16), (16, 16)],
    [(1, 1), (2, 1)],
    [(4, 4), (8, 8)],
]


@pytest.mark.cuda
@CUDA
@pytest.mark.parametrize("sizes", CUDA_NODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 7, 64, 88])
def test_the_gpu_agrees_with_the_cpu(channels, dtype, layout, sizes):
    for how in (
        {"method": "fast", "activation": "silu"},
        {"method": "softmax", "activation": "relu", "padding": "symmetric"},
        {"method": "sum"},
    ):
        there = maps(sizes, channels, layout=layout, dtype=dtype, device="cuda")
        here = copies([level.cpu() for level in there], torch.float64)
        weights = some_weights(len(sizes), torch.float32, "cuda")
        mine, theirs = [*there, weights], [*here, weights.detach().double().cpu().requires_grad_()]
        out = ops.weighted_fusion(mine[:-1], mine[-1], **how)
        expected = ops.weighted_fusion(theirs[:-1], theirs[-1], **how)
        tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        assert out.dtype == dtype and out.stride() == expected.to(dtype).stride()
        torch.testing.assert_close(out.double().cpu(), expected, rtol=tolerance, atol=tolerance)
        grad = torch.randn(out.shape, dtype=dtype, device="cuda")
        if how["method"] == "sum":
            mine, theirs = mine[:-1], theirs[:-1]
        got = torch.autograd.grad(out, mine, grad)
        wanted = torch.autograd.grad(expected, theirs, grad.double().cpu())
        for a, b in zip(got[: len(sizes)], wanted[: len(sizes)], strict=True):
            torch.testing.assert_close(a.double().cpu(), b, rtol=tolerance, atol=tolerance)
        for a, b in zip(got[len(sizes) :], wanted[len(sizes) :], strict=True):
            torch.testing.assert_close(a.double().cpu(), b, rtol=1e-4, atol=1e-5 * out.numel() ** 0.5 + 1e-4)


@pytest.mark.cuda
@CUDA
def test_the_gpu_gives_the_same_bits_twice_and_captures_into_a_graph():
    inputs = maps([(64, 64), (32, 32), (128, 128)], 64, layout=torch.channels_last, dtype=torch.bfloat16, device="cuda")
    weights = some_weights(3, torch.float32, "cuda")

    def both():
        out = ops.weighted_fusion(inputs, weights, activation="silu")
        return out, *torch.autograd.grad(out.float().square().sum(), [*inputs, weights])

    first, second = both(), both()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        captured = ops.weighted_fusion(inputs, weights, activation="silu")
    graph.replay()
    assert torch.equal(captured, first[0])


@pytest.mark.cuda
@CUDA
def test_ties_and_nan_on_the_gpu():
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, 3, (2, 16, 20, 24), generator=generator).float()
    values[torch.rand(values.shape, generator=generator) < 0.1] = float("nan")
    for layout in LAYOUTS:
        mine = values.cuda().contiguous(memory_format=layout).requires_grad_()
        theirs = values.clone().requires_grad_()
        zeros = torch.zeros(2, 16, 10, 12, device="cuda").contiguous(memory_format=layout)
        out = ops.weighted_fusion([zeros, mine], None, method="sum", padding="symmetric")
        expected = F.max_pool2d(theirs, 3, 2, 1)
        torch.testing.assert_close(out.cpu(), expected, equal_nan=True, rtol=0, atol=0)
        grad = torch.randn(out.shape)
        (a,), (b,) = torch.autograd.grad(out, mine, grad.cuda()), torch.autograd.grad(expected, theirs, grad)
        torch.testing.assert_close(a.cpu(), b)


@pytest.mark.cuda
@CUDA
def test_fp64_on_the_gpu_is_refused():
    inputs = maps(UP, device="cuda")
    with pytest.raises(RuntimeError, match="inputs: expected fp32, fp16 or bf16 on the GPU, got fp64"):
        ops.weighted_fusion(inputs, some_weights(2, device="cuda"))
