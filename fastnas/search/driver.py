"""The driver: asks the strategy, prices, checks limits, trains, records. Alone writes the study.

    ask -> price -> limits -> train (from the parent's weights) -> evaluate -> record
    front -> measured whole -> full training -> pareto.json

Nothing is measured while a candidate trains, because both happen one after the other in this process.
"""

import json
from dataclasses import dataclass, replace
from typing import Protocol

from fastnas.blueprint import Blueprint, Lineage, expand
from fastnas.errors import FastnasError
from fastnas.files import write_atomic
from fastnas.search.config import Limits, SearchConfig
from fastnas.search.evolution import SerialEvolution
from fastnas.search.front import finalists, pareto_entries
from fastnas.search.record import FAILED, FINISHED, REJECTED, WAITING, Final, Record
from fastnas.search.study import Study
from fastnas.train.evaluator import Evaluation, Evaluator, Job

MAX_REJECTED = 500  # candidates over a limit between two that are trained, before the search gives up
SEARCH_WEIGHTS, FINAL_WEIGHTS = "weights.safetensors", "final.safetensors"


class Prices(Protocol):
    """What the driver needs of an oracle."""

    def __call__(self, blueprint: Blueprint): ...
    def measure_whole_all(self, blueprints: list[Blueprint]): ...


class Listener:
    """Told what happens, for a display; every method may be overridden."""

    def begin(self, records: list[Record], config: SearchConfig) -> None: ...
    def started(self, record: Record, phase: str) -> None: ...
    def progress(self, share: float) -> None: ...
    def ended(self, record: Record, phase: str) -> None: ...
    def note(self, line: str) -> None: ...


@dataclass
class Driver:
    study: Study
    config: SearchConfig
    strategy: SerialEvolution
    evaluator: Evaluator
    final_evaluator: Evaluator  # sees all training images
    oracle: Prices
    listener: Listener

    def run(self) -> list[dict]:
        """Runs the search to its end and returns the entries of pareto.json."""
        records = self.study.records()
        self.listener.begin(records, self.config)
        while len([r for r in records if r.state in (FINISHED, FAILED)]) < self.config.candidates:
            waiting = next((r for r in records if r.state == WAITING), None) or self._next(records)
            if waiting is None:
                break
            self._train(waiting, records)
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

    def _next(self, records: list[Record]) -> Record | None:
        """Asks until a candidate keeps the limits; those that do not are recorded as rejected, never trained."""
        for _ in range(MAX_REJECTED):
            asked = self.strategy.ask(records)
            if asked is None:
                self.listener.note("no new candidate was found around the front: the search ends early")
                return None
            record = self.study.add(priced(asked[0], asked[1], self.oracle, self.config.limits))
            if record.state != REJECTED:
                return record
            self.listener.ended(record, "search")
            records = [*records, record]
        self.listener.note(f"{MAX_REJECTED} candidates in a row were over a limit: the search ends early")
        return None

    def _train(self, record: Record, records: list[Record]) -> None:
        parent = next((r for r in records if r.id == record.lineage.parent), None)
        epochs = self.config.epochs.child if parent else self.config.epochs.ancestor
        origin = self.study.verified_weights(parent.id) if parent else None
        folder = self.study.start(record.id)
        self.listener.started(record, "search")
        lineage = record.lineage if parent else None
        job = Job(record.blueprint, folder, SEARCH_WEIGHTS, "search", epochs, self._seed(record), origin, lineage)
        try:
            outcome = self.evaluator.evaluate(job, self.listener.progress)
        except (RuntimeError, MemoryError) as error:  # out of memory, a shape that a kernel refuses: this candidate's own
            outcome = Evaluation({}, 0.0, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        except BaseException:
            self.study.put_back(record.id)
            raise
        if outcome.error:
            self.study.fail(record.id, outcome.error, outcome.seconds)
        else:
            total = epochs + (parent.total_epochs if parent else 0)
            self.study.finish(record.id, outcome.metrics, epochs, total, outcome.seconds, folder / SEARCH_WEIGHTS)
        self.listener.ended(self._reload(record), "search")

    def _finish_all(self, chosen: list[Record]) -> None:
        """Full trainings, topped up so that all have seen equally many epochs in the end, whatever their lineage."""
        trained = [r.total_epochs + r.final.epochs for r in self.study.records() if r.final]
        target = max([self.config.epochs.final + max(r.total_epochs for r in chosen), *trained])
        missing = [r for r in chosen if r.final is None or r.total_epochs + r.final.epochs < target]
        if not missing:
            return
        # All finalists in one interleaved measurement, so that a busy moment of the machine favours none.
        timings = self.oracle.measure_whole_all([record.blueprint for record in missing])
        for record, timing in zip(missing, timings, strict=True):
            limit = self.config.limits.latency_ms
            if limit and timing.median_ms > limit:
                self.listener.note(
                    f"candidate {record.id} takes {timing.median_ms:.2f} ms when measured whole, over the limit of {limit:g} ms"
                    f" ({record.predicted_ms:.2f} predicted)"
                )
            self._finish(record, target - record.total_epochs, timing.median_ms)

    def _finish(self, record: Record, epochs: float, latency: float) -> None:
        """Trains a finalist fully from its own weights."""
        self.listener.started(record, "final")
        self.study.drop_final(record.id)
        folder, origin = self.study.candidate_folder(record.id), self.study.verified_weights(record.id)
        job = Job(record.blueprint, folder, FINAL_WEIGHTS, "final", epochs, self._seed(record), origin)
        outcome: Evaluation = self.final_evaluator.evaluate(job, self.listener.progress)
        if outcome.error:
            self.listener.note(f"the full training of candidate {record.id} failed: {outcome.error}")
            return
        weights = str((folder / FINAL_WEIGHTS).relative_to(self.study.folder))
        metrics = outcome.metrics
        final = Final(metrics["ap"], metrics["ap50"], metrics, latency, epochs, outcome.seconds, weights)
        self.study.finish_final(record.id, final)
        self.listener.ended(replace(record, final=final), "final")

    def _seed(self, record: Record) -> int:
        return self.config.seed * 1_000_003 + record.id

    def _reload(self, record: Record) -> Record:
        return next(r for r in self.study.records() if r.id == record.id)


def priced(blueprint: Blueprint, lineage: Lineage, oracle: Prices, limits: Limits) -> Record:
    """The record of a new candidate: waiting, or rejected with the reason if it is over a limit."""
    network, price = expand(blueprint), oracle(blueprint)
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
