"""Timing that survives other work on the machine: every slice of a candidate lies between two runs of fixed reference blocks.

Slice = references, candidate, references; each is repeated and its fastest run counts. The half of the slices whose references
agree best before and after is kept, and the answer is the median of candidate / drift, where drift says how much slower than
on the quiet machine the references just ran (their quiet times are taken once and kept in the latency table).

There are two references, because a neighbour that fills the caches slows gathers far more than convolutions: blocks that look
up single values (RoIAlign, proposal selection, final suppression) drift with `gather`, all others with `dense`, and a whole
network with the mean of both, weighted by the milliseconds it spends on either.

A block that runs again and again finds its data, its code and its branches in the processor's caches, inside a network it does
not. So a small detector runs before each timed run of a block; small networks are then about half as far off their sum.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from fastnas.blueprint import expand, parse
from fastnas.blueprint.blocks import Detections, Proposals, Residual, RoiPool, Spec
from fastnas.latency.engines import Engine
from fastnas.models.onnx import block_inputs, block_model, network_inputs, network_model

DENSE, GATHER = "dense", "gather"
REFERENCES = {
    DENSE: (Residual("basic", 64, 64, 1, "bn"), ((1, 64, 20, 20),)),
    GATHER: (RoiPool((4, 8)), ((1, 32, 32, 32), (1, 32, 16, 16), (24, 4))),
}
BETWEEN = "64x64/basic:1-2,base=8/fpn:8/rpn:20,topk=50/rcnn:16,detections=10/classes:3"  # runs before each timed run of a block
REFERENCE_RUNS = 2
SLICE_S = 0.003  # of candidate runs in a slice, where that is 2 to 16 runs
SLOW_S = 0.3  # a candidate this slow runs once a slice, in fewer slices
SLICES = 24  # where they fit into the budget
FEWEST, FEWEST_SLOW = 7, 5
AGREE = 0.05  # drift before and after a quiet slice differs by less than this share

Mix = Mapping[str, float]  # share of a candidate's time that drifts with each reference


def mix_of(spec: Spec) -> Mix:
    """Which reference a block drifts with."""
    return {GATHER: 1.0} if isinstance(spec, RoiPool | Proposals | Detections) else {DENSE: 1.0}


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one run. `spread`: relative standard deviation of the kept slices (from their median deviation)."""

    median_ms: float
    min_ms: float
    spread: float
    count: int  # slices kept

    def to_dict(self) -> dict:
        return {"median_ms": self.median_ms, "min_ms": self.min_ms, "spread": self.spread, "count": self.count}


class Stopwatch:
    """Times runners of one engine. `baselines`: milliseconds of each reference on this machine when nothing disturbs it."""

    def __init__(self, engine: Engine, baselines: Mapping[str, float] | None = None):
        self._clock = engine.clock
        self._references = {name: engine.prepare(block_model(*what), block_inputs(*what)).run for name, what in REFERENCES.items()}
        network = expand(parse(BETWEEN))
        self._between = engine.prepare(network_model(network, synthetic_scores=True), network_inputs(network)).run
        for run in (*self._references.values(), self._between):
            run()
        self.baselines = dict(baselines) if baselines else self._quiet()

    def measure(self, run: Callable[[], None], mix: Mix, budget_s: float = 0.2, alone: bool = False) -> Timing:
        """Times `run`; `alone` (for whole networks): nothing else runs between two runs of it.

        Takes about `budget_s`: longer where one run is slow, or on a machine too busy for quiet slices.
        """
        between = None if alone else self._between
        run()
        once = self._fastest(run, 2)
        runs, fewest = (1, FEWEST_SLOW) if once > SLOW_S else (max(2, min(16, round(SLICE_S / once))), FEWEST)
        slices: list[tuple[float, float]] = []  # (disagreement of the references, milliseconds)
        enabled = gc.isenabled()
        gc.disable()
        try:
            start = time.perf_counter()
            before = self._drift(mix)
            while not _enough(slices, fewest, time.perf_counter() - start, budget_s):
                candidate = 1e3 * self._fastest(run, runs, between)
                after = self._drift(mix)
                slices.append((abs(before - after) / min(before, after), 2 * candidate / (before + after)))
                before = after
        finally:
            if enabled:
                gc.enable()
        return _summary(slices)

    def _drift(self, mix: Mix) -> float:
        """How much slower than when quiet the references run now."""
        times = {name: 1e3 * self._fastest(self._references[name], REFERENCE_RUNS) for name in mix}
        return sum(share * times[name] / self.baselines[name] for name, share in mix.items()) / sum(mix.values())

    def _fastest(self, run: Callable[[], None], times: int, between: Callable[[], None] | None = None) -> float:
        """Seconds of the fastest of several runs."""
        clock, best = self._clock, float("inf")
        for _ in range(times):
            if between:
                between()
            start = clock()
            run()
            best = min(best, clock() - start)
        return best

    def _quiet(self) -> dict[str, float]:
        """Milliseconds of each reference when nothing disturbs it: the fastest tenth of what it takes over most of a second."""
        times: dict[str, list[float]] = {name: [] for name in self._references}
        start = time.perf_counter()
        while len(times[DENSE]) < 20 or time.perf_counter() - start < 0.8:
            for name, run in self._references.items():
                times[name].append(1e3 * self._fastest(run, REFERENCE_RUNS))
        return {name: sorted(values)[len(values) // 10] for name, values in times.items()}


def _summary(slices: list[tuple[float, float]]) -> Timing:
    kept = [value for _, value in sorted(slices)[: (len(slices) + 1) // 2]]
    middle = median(kept)
    spread = 1.4826 * median(abs(value - middle) for value in kept) / middle
    return Timing(middle, min(kept), spread, len(kept))


def _enough(slices: list[tuple[float, float]], fewest: int, elapsed: float, budget: float) -> bool:
    """Enough slices of which enough were quiet, or time is up: four times the budget where the machine is never quiet."""
    quiet = sum(disagreement < AGREE for disagreement, _ in slices)
    if len(slices) < fewest:
        return False
    return elapsed > budget * (1 if quiet >= fewest else 4) or (len(slices) >= SLICES and quiet >= fewest)
