"""What torch-cuda captures, replays and times, with torch.cuda played by objects that write down what is asked of them.

The arithmetic is the CPU's. `test_torch_engine` has what runs on a GPU.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastnas.blueprint import blocks as b
from fastnas.blueprint import expand, parse
from fastnas.latency.engines import open_engine
from fastnas.latency.torch_engine import WARM_UP, TorchCuda
from fastnas.models.timed import Part
from fastnas.models.workload import BlockWorkload, NetworkWorkload

NETWORK = NetworkWorkload(expand(parse("64x96/basic:1-2,base=16/fpn:16/rpn:20,topk=50/rcnn:16,detections=10/classes:3")))
BLOCK = BlockWorkload(b.Residual("basic", 16, 16, 1, "bn"), ((1, 16, 8, 8),))


@pytest.fixture
def log(monkeypatch):
    """What happened on the fake GPU, in order. Parts that run eagerly are `static` or `dynamic`."""
    log: list[str] = []
    log_once = SimpleNamespace(fails=False)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.polls = 0

        def record(self):
            log.append("event")

        def query(self):
            self.polls += 1
            return self.polls % 3 == 0

        def elapsed_time(self, end):
            return 4.0

    class Stream:
        def wait_stream(self, other):
            log.append("wait for the copies")

        def synchronize(self):
            log.append("synchronize")

    class CUDAGraph:
        def replay(self):
            log.append("replay")

    @contextmanager
    def graph(graph, stream):
        log.append("capture")
        if log_once.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        yield

    found = SimpleNamespace(name="Fake GPU", major=9, minor=0, total_memory=1 << 30)
    fakes = {
        "is_available": lambda: True, "Event": Event, "Stream": Stream, "CUDAGraph": CUDAGraph, "graph": graph,
        "stream": lambda stream: nullcontext(), "current_stream": lambda: None, "current_device": lambda: 0,
        "get_device_properties": lambda index: found, "synchronize": lambda: log.append("synchronize"),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)  # the real one asks the GPU
    monkeypatch.setattr(TorchCuda, "device", "cpu")
    forward = Part.forward

    def noted(self, *tensors):
        log.append("static" if self.static else "dynamic")
        return forward(self, *tensors)

    monkeypatch.setattr(Part, "forward", noted)
    log_once.log = log
    return log_once


def test_a_block_is_captured_after_it_warmed_up(log):
    runner = open_engine("torch-cuda:fp16").prepare(BLOCK)
    assert runner.graph
    assert log.log == ["wait for the copies", *["static"] * WARM_UP, "synchronize", "capture", "static"]


def test_a_replay_is_timed_behind_another_and_nothing_else_happens(log):
    engine = open_engine("torch-cuda")
    runner = engine.prepare(BLOCK)
    log.log.clear()
    runner.run()
    assert log.log == ["replay", "event", "replay", "event"] and engine.clock() == pytest.approx(0.004)
    runner.run()
    assert engine.clock() == pytest.approx(0.008)


def test_a_network_replays_all_but_what_depends_on_data(log):
    runner = open_engine("torch-cuda").prepare(NETWORK)
    assert runner.graph
    log.log.clear()
    runner.run()
    assert log.log == ["event", "replay", "dynamic", "replay", "dynamic", "event"]


@pytest.mark.parametrize("text", ["torch-cuda,graph=off", "torch-cuda"])
def test_without_a_capture_all_runs_eagerly(log, text):
    log.fails = True
    runner = open_engine(text).prepare(NETWORK)
    assert not runner.graph and ("capture" in log.log) == (text == "torch-cuda")
    log.log.clear()
    runner.run()
    assert log.log == ["event", "static", "dynamic", "static", "dynamic", "event"]
    expected = NETWORK.module()(*map(torch.from_numpy, NETWORK.inputs().values()))
    for ours, truth in zip(runner.outputs(), expected, strict=True):
        np.testing.assert_allclose(ours, truth.numpy(), atol=1e-4, rtol=1e-3)


def test_a_part_that_reads_what_moves_is_not_captured(log, monkeypatch):
    """Without the scene, pooling reads the boxes that selection has just made."""
    from fastnas.models import timed

    monkeypatch.setattr(timed, "replaced_inputs", lambda block, use: {})
    network = timed.timed_network(NETWORK.network)
    workload = SimpleNamespace(module=lambda: network, inputs=lambda: {"image": NETWORK.inputs()["image"]})
    runner = open_engine("torch-cuda").prepare(workload)
    assert not runner.graph
    log.log.clear()
    runner.run()
    assert log.log == ["event", "replay", "dynamic", "static", "dynamic", "event"]


def test_its_environment(log):
    environment = open_engine("torch-cuda:fp16,graph=off").environment()
    assert environment["device"] == "Fake GPU" and environment["device_id"] == "sm_90, 1073741824 bytes"
    assert environment["settings"]["graph"] == "off" and environment["settings"]["cuda"] == "13.0" and environment["driver"]
