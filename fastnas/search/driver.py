"""The driver: asks the strategy, prices, checks limits, trains, records. Alone writes the study.

    ask -> price -> limits -> train (from the parent's weights) -> evaluate -> record
    front -> measured whole -> full training -> pareto.json

An executor with several workers gets a generation of as many candidates at a time. They are asked for, priced and recorded before
any of them trains, so the search does not depend on which ends first, and nothing is measured while candidates train.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from fastnas.blueprint import Blueprint, Lineage, expand
from fastnas.errors import FastnasError
from fastnas.files import write_atomic
from fastnas.latency import Unpriceable
from fastnas.search.config import Limits, SearchConfig
from fastnas.search.evolution import Evolution
from fastnas.search.executor import Executor
from fastnas.search.front import finalists, pareto_entries
from fastnas.search.record import FAILED, FINISHED, REJECTED, WAITING, Final, Record
from fastnas.search.study import Study
from fastnas.train.evaluator import Evaluation, Job

MAX_REJECTED = 500  # candidates over a limit or without a price between two that are trained, before the search gives up
SEARCH_WEIGHTS = "weights.safetensors"
FINAL_WEIGHTS = ("final.safetensors", "final-longer.safetensors")  # by turns: a full training never overwrites the one before


class Prices(Protocol):
    """What the driver needs of an oracle."""

    @property
    def runs_here(self) -> bool: ...
    def __call__(self, blueprint: Blueprint): ...
    def measure_whole_all(self, blueprints: list[Blueprint]): ...


class Listener:
    """Told what happens, for a display; every method may be overridden."""

    def begin(self, records: list[Record], config: SearchConfig) -> None: ...
    def started(self, record: Record, phase: str) -> None: ...
    def progress(self, record: Record, share: float) -> None: ...
    def ended(self, record: Record, phase: str) -> None: ...
    def note(self, line: str) -> None: ...


@dataclass
class Driver:
    study: Study
    config: SearchConfig
    strategy: Evolution
    executor: Executor
    oracle: Prices
    listener: Listener

    def run(self) -> list[dict]:
        """Runs the search to its end and returns the entries of pareto.json."""
        records = self.study.records()
        self.listener.begin(records, self.config)
        while (trained := sum(r.state in (FINISHED, FAILED) for r in records)) < self.config.candidates:
            generation = self._generation(records, self.config.candidates - trained)
            if not generation:
                break
            self._train(generation, self.study.records())
            records = self.study.records()
        if not any(record.state == FINISHED for record in records):
            reasons = "; ".join(f"candidate {r.id}: {r.reason}" for r in records if r.reason) or "no candidate was tried"
            raise FastnasError(f"no candidate finished ({reasons})")
        self._finish_all(finalists(records, self.config.finalists))
        front = pareto_entries(self.study.records())
        if not front:
            raise FastnasError("no full training succeeded: see the lines above; lower train.lr in a new study")
        write_atomic(self.study.folder / "pareto.json", json.dumps(front, indent=1))
        return front

    def _generation(self, records: list[Record], most: int) -> list[Record]:
        """What trains next, side by side: candidates that wait (after an interruption: those alone), else newly asked ones.

        All that were asked for are recorded at once: a search that is killed here has either all of them or none.
        """
        if waiting := [r for r in records if r.state == WAITING]:
            return waiting[:most]
        asked: list[Record] = []
        for _ in range(min(most, self.executor.workers)):
            asked += self._next([*records, *asked])
            if not asked or asked[-1].state != WAITING or not any(r.state == FINISHED for r in records):
                break  # none was found, or the ancestor: everything else grows from it
        added = self.study.add_all(asked)
        for record in added:
            if record.state == REJECTED:
                self.listener.ended(record, "search")
        return [record for record in added if record.state == WAITING]

    def _next(self, records: list[Record]) -> list[Record]:
        """Asks until a candidate keeps the limits; those before it do not, and are recorded as rejected, never trained."""
        asked: list[Record] = []
        for _ in range(MAX_REJECTED):
            known = [*records, *asked]
            candidate = self.strategy.ask(known)
            if candidate is None:
                self.listener.note("no new candidate was found around the front: the search ends early")
                return asked
            asked.append(replace(priced(*candidate, self.oracle, self.config.limits), id=len(known)))
            if asked[-1].state != REJECTED:
                return asked
        self.listener.note(f"{MAX_REJECTED} candidates in a row were over a limit or had no price: the search ends early")
        return asked

    def _train(self, generation: list[Record], records: list[Record]) -> None:
        parents = [next((r for r in records if r.id == record.lineage.parent), None) for record in generation]
        jobs = []
        for record, parent in zip(generation, parents, strict=True):
            origin = self.study.verified_weights(parent.id) if parent else None
            epochs = self.config.epochs.child if parent else self.config.epochs.ancestor
            folder, lineage = self.study.start(record.id), record.lineage if parent else None
            init = Path(self.config.init) if self.config.init and not parent else None
            jobs.append(Job(record.blueprint, folder, SEARCH_WEIGHTS, "search", epochs, self._seed(record), origin, lineage, init))
        try:
            for index, outcome in self._run(generation, jobs):
                record, parent, job = generation[index], parents[index], jobs[index]
                if outcome.error:
                    self.study.fail(record.id, outcome.error, outcome.seconds)
                else:
                    total = job.epochs + (parent.total_epochs if parent else 0)
                    weights = job.folder / SEARCH_WEIGHTS
                    self.study.finish(record.id, outcome.metrics, job.epochs, total, outcome.seconds, weights)
                self.listener.ended(self._reload(record), "search")
        except BaseException:
            for record in generation:
                self.study.put_back(record.id)  # those that still run; the others keep their state
            raise

    def _run(self, records: list[Record], jobs: list[Job]) -> Iterator[tuple[int, Evaluation]]:
        for record, job in zip(records, jobs, strict=True):
            self.listener.started(record, job.phase)
        return self.executor.run(jobs, lambda index, share: self.listener.progress(records[index], share))

    def _finish_all(self, chosen: list[Record]) -> None:
        """Full trainings, topped up so that all have seen equally many epochs in the end, whatever their lineage."""
        trained = [r.total_epochs + r.final.epochs for r in self.study.records() if r.final]
        target = max([self.config.epochs.final + max(r.total_epochs for r in chosen), *trained])
        missing = [r for r in chosen if r.final is None or r.total_epochs + r.final.epochs < target]
        if not missing:
            return
        latencies = self._measured(missing)
        jobs = []
        for record in missing:
            name = next(name for name in FINAL_WEIGHTS if not record.final or Path(record.final.weights).name != name)
            folder, origin = self.study.candidate_folder(record.id), self.study.verified_weights(record.id)
            epochs = target - record.total_epochs
            jobs.append(Job(record.blueprint, folder, name, "final", epochs, self._seed(record), origin))
        for index, outcome in self._run(missing, jobs):
            self._finish(missing[index], jobs[index], outcome, latencies[index])

    def _measured(self, chosen: list[Record]) -> list[float | None]:
        """Milliseconds of whole networks, None where the device is not here.

        All in one interleaved measurement, so that a busy moment of the machine favours none.
        """
        if not self.oracle.runs_here:
            self.listener.note("the device is not here: the front is not measured whole, its latency_ms is null; see predicted_ms")
            return [None] * len(chosen)
        latencies = [timing.median_ms for timing in self.oracle.measure_whole_all([record.blueprint for record in chosen])]
        limit = self.config.limits.latency_ms
        for record, latency in zip(chosen, latencies, strict=True):
            if limit and latency > limit:
                self.listener.note(
                    f"candidate {record.id} takes {latency:.2f} ms when measured whole, over the limit of {limit:g} ms"
                    f" ({record.predicted_ms:.2f} predicted)"
                )
        return latencies

    def _finish(self, record: Record, job: Job, outcome: Evaluation, latency: float | None) -> None:
        """Records the full training of a finalist, which went on from its own weights."""
        if outcome.error:
            self.listener.note(f"the full training of candidate {record.id} failed: {outcome.error}")
            return
        weights = str((job.folder / job.weights).relative_to(self.study.folder))
        metrics = outcome.metrics
        final = Final(metrics["ap"], metrics["ap50"], metrics, latency, job.epochs, outcome.seconds, weights)
        self.study.finish_final(record.id, final)
        self.listener.ended(replace(record, final=final), "final")

    def _seed(self, record: Record) -> int:
        return self.config.seed * 1_000_003 + record.id

    def _reload(self, record: Record) -> Record:
        return next(r for r in self.study.records() if r.id == record.id)


def priced(blueprint: Blueprint, lineage: Lineage, oracle: Prices, limits: Limits) -> Record:
    """The record of a new candidate: waiting, or rejected with the reason if it is over a limit or has no price."""
    network = expand(blueprint)
    try:
        price = oracle(blueprint)
    except Unpriceable as error:
        costs = (network.params, network.macs, math.nan, math.nan, math.nan)
        return Record(-1, blueprint, lineage, REJECTED, *costs, reason=str(error))
    reasons = [
        f"{name} {value:.6g} over the limit {limit:.6g}"
        for name, value, limit in (
            ("params", network.params, limits.params),
            ("macs", network.macs, limits.macs),
            ("latency_ms", price.predicted, limits.latency_ms),
        )
        if limit is not None and value > limit
    ]
    state = REJECTED if reasons else WAITING
    costs = (network.params, network.macs, price.predicted, price.low, price.high)
    return Record(-1, blueprint, lineage, state, *costs, reason="; ".join(reasons))
