"""What the benchmark of a training step puts in place of the operators: the same results, and the operators again afterwards."""

import importlib
from pathlib import Path

import pytest
import torch

import fastnas.models.boxes
from fastnas import ops
from fastnas.blueprint import parse

BENCH = Path(__file__).parents[2] / "bench"
TINY = "64x96/basic:1-1,base=8,norm=gn/fpn:16/rpn:50/rcnn:32/classes:3"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("bench_train_step")


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("_peers")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_case_has_equal_losses_and_times_what_it_says(bench, dtype):
    size = bench.Size(2, (64, 96), 32, 50)
    case = bench.step_case("tiny", parse(TINY), torch.device("cpu"), dtype, size).built()
    assert set(case.candidates) == {"fastnas", "others", "operators for free"} and case.bound == "operators for free"
    assert case.facts["operator_calls"]["batched_nms"] == 1 and case.facts["operator_calls"]["multiscale_roi_align"] == 1
    assert set(case.facts["losses"]) == {"rpn_objectness", "rpn_box", "head_class", "head_box"}
    assert case.facts["convolutions_ms"] > 0
    assert case.goal == (1.5 if dtype == "bf16" else None)
    first, second = (case.candidates["others"]() for _ in range(2))
    assert {name: value.item() for name, value in first.items()} == {name: value.item() for name, value in second.items()}
    weights = [parameter.clone() for parameter in case.candidates["fastnas"].model.parameters()]
    case.candidates["fastnas"]()
    assert all(map(torch.equal, weights, case.candidates["fastnas"].model.parameters()))


def test_different_losses_stop_the_benchmark(bench, monkeypatch):
    def nothing_suppressed(boxes, scores, idxs, iou_threshold):
        return scores.argsort(descending=True)

    monkeypatch.setitem(bench.PEERS, "batched_nms", nothing_suppressed)
    with pytest.raises(AssertionError, match="others"):
        bench.step_case("tiny", parse(TINY), torch.device("cpu"), "fp32", bench.Size(2, (64, 96), 32, 50)).built()
    assert fastnas.models.boxes.batched_nms is ops.batched_nms


def test_operators_are_swapped_everywhere_and_come_back(peers):
    swap = peers.Swap({"batched_nms": len})
    with swap:
        assert fastnas.models.boxes.batched_nms is len and ops.batched_nms is len
    assert fastnas.models.boxes.batched_nms is ops.batched_nms is not len


def test_replayed_results_are_those_of_the_operators(peers):
    features = [torch.randn(1, 4, side, side, requires_grad=True) for side in (16, 8)]
    rois = torch.tensor([[0, 1.0, 2.0, 30.0, 40.0], [0, 5.0, 5.0, 60.0, 50.0]])

    def run():
        out = ops.multiscale_roi_align(features, rois, 3, [4, 8])
        return out, torch.autograd.grad(out.sum(), features)

    replay = peers.Replay(run)
    assert replay.calls == {"multiscale_roi_align": 1}
    expected, _ = run()
    for _ in range(2):
        out, gradients = replay(run)
        assert torch.equal(out, expected) and [g.shape for g in gradients] == [f.shape for f in features]


def test_multiscale_roi_align_of_the_peer(peers):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 4, 64 // 2**level, 64 // 2**level, generator=generator) for level in range(4)]
    corners = torch.rand(40, 2, generator=generator) * 100
    sides = 4 * 60 ** torch.rand(40, 2, generator=generator)
    rois = torch.cat([torch.arange(2.0).repeat_interleave(20)[:, None], corners, corners + sides], 1)
    arguments = (features, rois, 7, [4, 8, 16, 32])
    torch.testing.assert_close(peers.multiscale_roi_align(*arguments), ops.multiscale_roi_align(*arguments), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(ops, "group_norm_act"), reason="no such operator yet")
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_group_norm_act_of_the_peer(peers, activation):
    x, residual, weight, bias = torch.randn(2, 8, 5, 6), torch.randn(2, 8, 5, 6), torch.randn(8), torch.randn(8)
    for more in ({}, {"residual": residual}):
        arguments = dict(weight=weight, bias=bias, activation=activation, **more)
        expected = ops.group_norm_act(x, 4, **arguments)
        torch.testing.assert_close(peers.group_norm_act(x, 4, **arguments), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu"])
def test_batch_norm_act_of_the_peer(peers, activation):
    x, residual, weight, bias = torch.randn(2, 8, 5, 6), torch.randn(2, 8, 5, 6), torch.randn(8), torch.randn(8)
    running = [[torch.zeros(8), torch.ones(8)] for _ in range(2)]
    for more in ({"training": True}, {"training": True, "residual": residual}, {"training": False}):
        arguments = dict(weight=weight, bias=bias, activation=activation, momentum=0.3, **more)
        expected = ops.batch_norm_act(x, *running[0], **arguments)
        torch.testing.assert_close(peers.batch_norm_act(x, *running[1], **arguments), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(*running, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(ops, "weighted_fusion"), reason="no such operator yet")
@pytest.mark.parametrize("method", ["fast", "softmax", "sum"])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_weighted_fusion_of_the_peer(peers, method, padding):
    inputs = [torch.randn(2, 4, 8, 10), torch.randn(2, 4, 4, 5), torch.randn(2, 4, 16, 20)]
    weights = None if method == "sum" else torch.tensor([0.5, -1.0, 2.0])
    arguments = (inputs, weights, (8, 10), method, "silu", 1e-4, padding)
    torch.testing.assert_close(peers.weighted_fusion(*arguments), ops.weighted_fusion(*arguments), rtol=1e-4, atol=1e-5)
