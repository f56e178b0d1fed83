"""Timing of several implementations in one run, taken in turn, so that load and clock drift hit all alike.

The CPU is timed by the wall clock. CUDA is timed by events around a call that starts on an idle device with a cold L2 cache:
this is what a caller waits for, launches included. Where that is short, the same call is also replayed as a CUDA graph, queued
while the device is still busy with clearing the cache: this is what the device alone needs.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Run = Callable[[], Any]
Timing = dict[str, Any]  # {"median_ms", "min_ms", "runs", "graph"?: ...} or {"error": one line}

LEAST_RUNS = 5
GRAPH_BELOW_MS = 0.2  # from here on down launches may be most of the time: the device's own share is worth knowing
FLUSH_BYTES = 256 << 20  # more than any L2 cache
ERROR_LENGTH = 300


def time_in_turn(candidates: dict[str, Run], device: torch.device, seconds: float, least: int = LEAST_RUNS) -> dict[str, Timing]:
    """Runs A B C A B C ... for about `seconds` in all, but each at least `least` times; gives each one's median and minimum.

    What a candidate does once (compiling, opening a library) happens in its warm-up. One that raises, then or later, gets
    `{"error": message}` and the others go on.
    """
    timings: dict[str, Timing] = {}
    clock = _CudaClock(device) if device.type == "cuda" else _CpuClock()
    running = {}
    for name, run in candidates.items():
        if not _record_error(timings, name, lambda run=run: clock.warm_up(run)):
            running[name] = run
    samples: dict[str, list[float]] = {name: [] for name in running}
    with _no_garbage_collection():
        end = time.perf_counter() + seconds
        while running and (time.perf_counter() < end or min(len(samples[name]) for name in running) < least):
            for name, run in list(running.items()):
                if _record_error(timings, name, lambda name=name, run=run: samples[name].append(clock.milliseconds(run))):
                    del running[name]
    for name in running:
        timings[name] = summary(samples[name])
    return {name: timings[name] for name in candidates}


def summary(milliseconds: list[float]) -> Timing:
    middle, least = statistics.median(milliseconds), min(milliseconds)
    return {"median_ms": float(f"{middle:.5g}"), "min_ms": float(f"{least:.5g}"), "runs": len(milliseconds)}


def one_line(error: BaseException) -> str:
    """The error's type and message, short enough for a table."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:ERROR_LENGTH]


def _record_error(timings: dict[str, Timing], name: str, action: Callable[[], Any]) -> bool:
    try:
        action()
    except Exception as error:  # whatever a candidate raises is a result of the row
        timings[name] = {"error": one_line(error)}
        return True
    return False


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection in the middle of a run would be charged to whoever was running."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _CpuClock:
    def warm_up(self, run: Run) -> None:
        run()
        run()  # the first may have compiled, or met fresh memory

    def milliseconds(self, run: Run) -> float:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)


class _CudaClock:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cache = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def warm_up(self, run: Run) -> None:
        for _ in range(3):
            run()
        torch.cuda.synchronize(self.device)

    def milliseconds(self, run: Run, busy: bool = False) -> float:
        """busy: queue the run behind the clearing of the cache, so that no launch has to be waited for."""
        self.cache.zero_()
        if not busy:
            torch.cuda.synchronize(self.device)
        self.start.record()
        run()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end)


# ----------------------------------------------------------------------------------------------------------------------
# CUDA graphs

_capture_problem: str | None = None  # torch's allocator may not recover from a capture that failed: no other is tried then


def time_graphs(candidates: dict[str, Run], device: torch.device, timings: dict[str, Timing], seconds: float) -> None:
    """Adds `"graph": {median_ms, min_ms, runs}` or `"graph": {"error": ...}` to the timings, if that of "fastnas" is short.

    The graphs are replayed in turn, like the calls were. A candidate that waits for the device cannot be captured.
    """
    if timings["fastnas"].get("median_ms", GRAPH_BELOW_MS) >= GRAPH_BELOW_MS:
        return
    replays: dict[str, Run] = {}
    for name, run in candidates.items():
        if "error" not in timings[name]:
            try:
                replays[name] = _capture(run, device).replay
            except Exception as error:  # whatever forbids capturing is a result of the row
                timings[name]["graph"] = {"error": one_line(error)}
    clock = _CudaClock(device)
    samples: dict[str, list[float]] = {name: [] for name in replays}
    end = time.perf_counter() + seconds
    with _no_garbage_collection():
        while replays and (time.perf_counter() < end or min(map(len, samples.values())) < LEAST_RUNS):
            for name, replay in replays.items():
                samples[name].append(clock.milliseconds(replay, busy=True))
    for name, taken in samples.items():
        timings[name]["graph"] = summary(taken)


def _capture(run: Run, device: torch.device) -> torch.cuda.CUDAGraph:
    global _capture_problem
    if _capture_problem:
        raise RuntimeError(f"not tried, an earlier capture failed: {_capture_problem}")
    _require_no_wait(run)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
        graph.replay()
        torch.cuda.synchronize(device)
    except Exception as error:
        _capture_problem = one_line(error)
        raise
    return graph


def _require_no_wait(run: Run) -> None:
    """Raises where torch sees `run` wait for the device: found out here, it does no harm, inside a capture it does."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode(before)
        torch.cuda.synchronize()


# ----------------------------------------------------------------------------------------------------------------------
# The ceiling: how fast this device copies

MEMORY_BUFFER = 256 << 20
CACHE_BUFFER = 1 << 20


def copy_bandwidth(device: torch.device, seconds: float, scale: float = 1.0) -> dict[str, Any]:
    """GB/s, counting bytes read and bytes written, of copying a large buffer and (on the CPU) one that stays in the cache.

    Returns `{"memory": {"gbps", "bytes"}, "cache"?: ...}`; bytes: read + written in one copy. scale: of the large one, for tests.
    """
    found = {}
    sizes = {"memory": int(scale * (MEMORY_BUFFER if device.type == "cpu" else 4 * MEMORY_BUFFER))}
    if device.type == "cpu":
        sizes["cache"] = CACHE_BUFFER
    for name, size in sizes.items():
        source = torch.randint(0, 100, (size // 8,), device=device)
        target = torch.empty_like(source)
        timing = time_in_turn({"copy": lambda s=source, t=target: t.copy_(s)}, device, seconds)["copy"]
        moved = 2 * source.numel() * source.element_size()
        found[name] = {"gbps": round(gbps(moved, timing["median_ms"]), 1), "bytes": moved}
    return found


def gbps(count: float, milliseconds: float) -> float:
    return count / milliseconds / 1e6
