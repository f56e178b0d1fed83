"""How the harness times a GPU, on a stand-in that logs what is asked of torch.cuda: order of events, graphs, captures that fail."""

import contextlib
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"
DEVICE = SimpleNamespace(type="cuda", index=0)


@pytest.fixture
def log(monkeypatch):
    """Everything that is asked of the stand-in, in order."""
    log, state = [], {"mode": 0}

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, other):
            return 0.02

    class Graph:
        def replay(self):
            log.append("replay")

    class Stream:
        def __init__(self, *_):
            pass

        def wait_stream(self, _):
            pass

    @contextlib.contextmanager
    def graph(_):
        log.append("capture")
        state["capturing"] = True
        try:
            yield
        finally:
            state["capturing"] = False

    stand_in = SimpleNamespace(
        Event=Event, CUDAGraph=Graph, Stream=Stream, graph=graph,
        current_stream=Stream, stream=lambda _: contextlib.nullcontext(), synchronize=lambda *_: log.append("synchronize"),
        get_sync_debug_mode=lambda: state["mode"], set_sync_debug_mode=lambda mode: state.update(mode=mode),
    )  # fmt: skip
    monkeypatch.setattr(torch, "cuda", stand_in)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device=None, **options: empty(1024, **options))
    zero = torch.Tensor.zero_
    monkeypatch.setattr(torch.Tensor, "zero_", lambda self: (log.append("flush"), zero(self))[1])
    log_state = SimpleNamespace(entries=log, state=state)
    return log_state


@pytest.fixture
def timing(monkeypatch, log):
    monkeypatch.syspath_prepend(str(BENCH))
    module = importlib.import_module("_timing")
    monkeypatch.setattr(module, "_capture_problem", None)
    return module


def test_a_run_starts_on_an_idle_device_with_a_cold_cache(timing, log):
    found = timing.time_in_turn({"fastnas": lambda: log.entries.append("a"), "peer": lambda: log.entries.append("b")}, DEVICE, 0, 2)
    assert found["fastnas"] == {"median_ms": 0.02, "min_ms": 0.02, "runs": 2}
    once = ["flush", "synchronize", "event", "{}", "event", "wait"]
    turn = [part.format("a") for part in once] + [part.format("b") for part in once]
    assert log.entries == ["a"] * 3 + ["synchronize"] + ["b"] * 3 + ["synchronize"] + turn * 2


def test_a_graph_is_queued_behind_the_flush(timing, log):
    timings = {"fastnas": {"median_ms": 0.02}, "peer": {"error": "x"}}
    timing.time_graphs({"fastnas": lambda: None, "peer": lambda: None}, DEVICE, timings, 0)
    assert timings["fastnas"]["graph"] == {"median_ms": 0.02, "min_ms": 0.02, "runs": timing.LEAST_RUNS}
    assert "graph" not in timings["peer"]
    assert log.entries[-5 * timing.LEAST_RUNS :] == ["flush", "event", "replay", "event", "wait"] * timing.LEAST_RUNS


def test_no_graph_of_what_takes_long_or_raised(timing, log):
    for ours in ({"median_ms": 0.21}, {"error": "x"}):
        timing.time_graphs({"fastnas": lambda: None}, DEVICE, {"fastnas": ours}, 0)
    assert not log.entries


def test_what_waits_for_the_device_is_not_captured(timing, log):
    def waits():
        if log.state["mode"] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    timings = {"fastnas": {"median_ms": 0.02}, "waits": {"median_ms": 0.02}}
    timing.time_graphs({"waits": waits, "fastnas": lambda: None}, DEVICE, timings, 0)
    assert timings["waits"]["graph"] == {"error": "RuntimeError: called a synchronizing CUDA operation"}
    assert "median_ms" in timings["fastnas"]["graph"] and log.state["mode"] == 0


def test_after_a_capture_that_failed_no_other_is_tried(timing, log):
    def fails():
        if log.state.get("capturing"):
            raise RuntimeError("operation not permitted when stream is capturing")

    timings = {"fastnas": {"median_ms": 0.02}, "fails": {"median_ms": 0.02}}
    timing.time_graphs({"fails": fails, "fastnas": lambda: None}, DEVICE, timings, 0)
    assert "not permitted" in timings["fails"]["graph"]["error"]
    assert "an earlier capture failed" in timings["fastnas"]["graph"]["error"] and log.entries.count("capture") == 1
