"""An oracle and an evaluator that cost nothing: latency and AP are formulas of the blueprint."""

import hashlib
import json
from dataclasses import dataclass, field
from types import SimpleNamespace

from fastnas.blueprint import expand
from fastnas.search.config import check_config
from fastnas.search.driver import Driver, Listener
from fastnas.search.evolution import Evolution
from fastnas.search.executor import InProcess
from fastnas.train.evaluator import Evaluation, Job

ANCESTOR = "64x80/basic:1-2-1,base=8,stem=3x3/fpn:16/rpn:20/rcnn:16/classes:3"


def config(**changes):
    return check_config({"space": "spnas", "ancestor": ANCESTOR, "candidates": 8, "finalists": 2, **changes})


class FakeOracle:
    """1 ms for every million MACs."""

    runs_here = True

    def __call__(self, blueprint):
        ms = expand(blueprint).macs / 1e6
        return SimpleNamespace(predicted=ms, low=0.9 * ms, high=1.1 * ms)

    def measure_whole_all(self, blueprints):
        return [SimpleNamespace(median_ms=1.02 * self(blueprint).predicted) for blueprint in blueprints]


@dataclass
class FakeEvaluator:
    """AP grows with depth and with training; `fail` names codes that diverge, `stop_at` interrupts the n-th call."""

    fail: set[str] = field(default_factory=set)
    stop_at: int = -1
    jobs: list[Job] = field(default_factory=list)

    def evaluate(self, job, progress=lambda share: None):
        if len(self.jobs) == self.stop_at:
            raise KeyboardInterrupt
        self.jobs.append(job)
        code = job.blueprint.backbone.code
        if code in self.fail:
            return Evaluation({}, 1.0, "loss is nan at epoch 0.50")
        if job.origin:
            assert job.origin.is_file()
        jitter = int(hashlib.sha256(code.encode()).hexdigest()[:4], 16) / 65536 * 0.05
        ap = 0.2 + 0.01 * len(code) + jitter + (0.1 if job.phase == "final" else 0)
        (job.folder / job.weights).write_bytes(f"{code} {job.phase} {job.seed}".encode())
        (job.folder / "metrics.jsonl").write_text(json.dumps({"phase": job.phase, "epoch": 1.0, "ap": ap}) + "\n")
        return Evaluation({"ap": ap, "ap50": ap + 0.2}, 1.0)


def drive(study, settings, evaluator=None, listener=None, oracle=None):
    """Runs the driver of `study` with fakes; returns (entries of pareto.json, evaluator)."""
    evaluator = evaluator or FakeEvaluator()
    strategy = Evolution(settings.make_space(3), settings.seed)
    executor = InProcess(evaluator, evaluator)
    executor.workers = settings.workers  # generations of that many, trained one after the other
    return Driver(study, settings, strategy, executor, oracle or FakeOracle(), listener or Listener()).run(), evaluator
