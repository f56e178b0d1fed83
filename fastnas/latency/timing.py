"""Timing that survives other work on the machine: every slice of a candidate lies between two runs of fixed reference blocks.

Slice = references, candidate, references; each is repeated and its fastest run counts. The half of the slices whose references
agree best before and after is kept, and the answer is the median of candidate / drift, where drift says how much slower than
on the quiet machine the references just ran. Their quiet times (baselines) are kept in the latency table. They are only as good
as the machine was quiet when they were taken, so they are taken anew whenever a table is opened for measuring: `lowered`.
Several candidates that will be compared are timed in interleaved rounds: what changes slowly meets all of them alike.

There are two references, because a neighbour that fills the caches slows gathers far more than convolutions: blocks that look
up single values (RoIAlign, proposal selection, final suppression) drift with `gather`, all others with `dense`, and a whole
network with the mean of both, weighted by the milliseconds it spends on either.

A block that runs again and again finds its data, its code and its branches in the processor's caches, inside a network it does
not. So a small detector runs before each timed run of a block; small networks are then about half as far off their sum.
"""

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from fastnas.blueprint import expand, parse
from fastnas.blueprint.blocks import PROPOSERS, SUPPRESSIONS, Residual, RoiPool, Spec
from fastnas.latency.engines import Engine
from fastnas.models.workload import BlockWorkload, NetworkWorkload

DENSE, GATHER = "dense", "gather"
REFERENCES = {
    DENSE: (Residual("basic", 64, 64, 1, "bn"), ((1, 64, 20, 20),)),
    GATHER: (RoiPool((4, 8)), ((1, 32, 32, 32), (1, 32, 16, 16), (24, 4))),
}
BETWEEN = "64x64/basic:1-2,base=8/fpn:8/rpn:20,topk=50/rcnn:16,detections=10/classes:3"  # runs before each timed run of a block
REFERENCE_RUNS = 2
RUNS = 4  # of the candidate in a slice, blocks and networks alike: the fastest of more runs is faster, the more so the busier it is
SLICE_S = 0.04  # of candidate runs in a slice at most, where that is 2 runs or more
SLOW_S = 0.3  # a candidate this slow runs once a slice, in fewer slices
SLICES = 24  # where they fit into the budget
FEWEST, FEWEST_SLOW = 7, 5
AGREE = 0.05  # drift before and after a quiet slice differs by less than this share
CONTAMINATED = 0.05  # a baseline that is higher than a new one by more than this share was taken on a busy machine
QUIET_S, QUIET_AGAIN_S = 0.8, 0.3  # how long the first baselines take, and new ones to compare stored ones with
_GATHER = RoiPool, *PROPOSERS, *SUPPRESSIONS

Mix = Mapping[str, float]  # share of a candidate's time that drifts with each reference


def mix_of(spec: Spec) -> Mix:
    """Which reference a block drifts with."""
    return {GATHER if isinstance(spec, _GATHER) else DENSE: 1.0}


def reference_of(key: str) -> str:
    """The one reference in the mix of the block with this key (`Spec.key`). Raises ValueError, KeyError or TypeError: no key."""
    return GATHER if json.loads(key)["op"] in {spec.op for spec in _GATHER} else DENSE


def lowered(stored: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """The baselines to go on with. A reference that now runs clearly faster was disturbed when it was stored: the new one counts.

    One that runs slower now, or hardly faster, keeps its stored baseline: the machine is merely busy.
    """
    clearly = {name: measured[name] < old / (1 + CONTAMINATED) for name, old in stored.items()}
    return {name: measured[name] if clearly[name] else old for name, old in stored.items()}


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
        self._references = {name: engine.prepare(BlockWorkload(*what)).run for name, what in REFERENCES.items()}
        self._between = engine.prepare(NetworkWorkload(expand(parse(BETWEEN)))).run
        for run in (*self._references.values(), self._between):
            run()
        self.baselines = dict(baselines) if baselines else self.quiet(QUIET_S)

    def measure(self, run: Callable[[], None], mix: Mix, budget_s: float = 0.2) -> Timing:
        """Times a block. Takes about `budget_s`: longer where one run is slow, or on a machine too busy for quiet slices."""
        return self._measure([(run, mix)], budget_s, self._between)[0]

    def measure_whole(self, networks: Sequence[tuple[Callable[[], None], Mix]], budget_s: float = 0.5) -> list[Timing]:
        """Times whole networks in interleaved rounds: nothing else runs between two runs in a slice. About `budget_s` for each."""
        return self._measure(networks, budget_s, None)

    def _measure(
        self, candidates: Sequence[tuple[Callable[[], None], Mix]], budget_s: float, between: Callable[[], None] | None
    ) -> list[Timing]:
        """A round is one slice of each candidate; all get equally many. Stops when each has enough."""
        plans = [self._plan(run) for run, _ in candidates]
        names = {name for _, mix in candidates for name in mix}
        slices: list[list[tuple[float, float]]] = [[] for _ in candidates]  # (disagreement of the references, milliseconds)
        enabled = gc.isenabled()
        gc.disable()
        try:
            start = time.perf_counter()
            drifts = self._drifts(names)
            while not all(
                _enough(own, fewest, (time.perf_counter() - start) / len(candidates), budget_s)
                for own, (_, fewest) in zip(slices, plans, strict=True)
            ):
                for (run, mix), (runs, _), own in zip(candidates, plans, slices, strict=True):
                    before = _mixed(drifts, mix)
                    milliseconds = 1e3 * self._fastest(run, runs, between)
                    drifts = self._drifts(names)
                    after = _mixed(drifts, mix)
                    own.append((abs(before - after) / min(before, after), 2 * milliseconds / (before + after)))
        finally:
            if enabled:
                gc.enable()
        return [_summary(own) for own in slices]

    def _plan(self, run: Callable[[], None]) -> tuple[int, int]:
        """How often it runs in a slice, and its fewest slices."""
        run()
        once = self._fastest(run, 2)
        return (1, FEWEST_SLOW) if once > SLOW_S else (max(2, min(RUNS, round(SLICE_S / once))), FEWEST)

    def _drifts(self, names: set[str]) -> dict[str, float]:
        """How much slower than when quiet each of these references runs now."""
        return {name: 1e3 * self._fastest(self._references[name], REFERENCE_RUNS) / self.baselines[name] for name in sorted(names)}

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

    def quiet(self, seconds: float) -> dict[str, float]:
        """Milliseconds of each reference when nothing disturbs it: the fastest tenth of what it takes over some time."""
        times: dict[str, list[float]] = {name: [] for name in self._references}
        start = time.perf_counter()
        while len(times[DENSE]) < 20 or time.perf_counter() - start < seconds:
            for name, run in self._references.items():
                times[name].append(1e3 * self._fastest(run, REFERENCE_RUNS))
        return {name: sorted(values)[len(values) // 10] for name, values in times.items()}


def _mixed(drifts: Mapping[str, float], mix: Mix) -> float:
    return sum(share * drifts[name] for name, share in mix.items()) / sum(mix.values())


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
