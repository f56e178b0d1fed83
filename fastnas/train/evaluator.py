"""The evaluator: one candidate in, its AP out. It reads and writes files of the candidate's folder and sees no database."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fastnas.blueprint import Blueprint, Lineage
from fastnas.data.dataset import DetectionData
from fastnas.files import write_atomic
from fastnas.models.assemble import build
from fastnas.models.detector import Detector
from fastnas.models.inherit import inherit
from fastnas.models.start import start_from
from fastnas.models.weights import load_weights, save_weights
from fastnas.train.config import TrainConfig
from fastnas.train.evaluate import coco_metrics, detect
from fastnas.train.loop import Diverged, train

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Job:
    """What to train. `origin`: weights to start from, mapped by `lineage` (none: they are this blueprint's own).

    `init`: without an origin, weights with the same backbone to start from (see `fastnas.models.start`); none: a fresh start.
    """

    blueprint: Blueprint
    folder: Path
    weights: str  # file name inside `folder`
    phase: str  # search | final
    epochs: float
    seed: int
    origin: Path | None = None
    lineage: Lineage | None = None
    init: Path | None = None


@dataclass(frozen=True)
class Evaluation:
    """Outcome of a job. `error` is set, and everything else meaningless, when training diverged."""

    metrics: dict[str, float]
    seconds: float
    error: str = ""


class Evaluator:
    """Trains and evaluates candidates on one pair of data sets that stays decoded in memory, at each blueprint's input size."""

    def __init__(self, train_data: DetectionData, val_data: DetectionData, config: TrainConfig):
        self.train_data, self.val_data, self.config = train_data, val_data, config

    def evaluate(self, job: Job, progress: Callable[[float], None] = lambda share: None) -> Evaluation:
        """Trains `job` and evaluates its averaged weights. Writes `job.weights` and metrics.jsonl atomically into `job.folder`.

        progress is called with the share of the training that is done, 0 to 1.
        """
        begin = time.monotonic()
        torch.manual_seed(job.seed)
        detector = build(job.blueprint)
        lines: list[dict] = []
        if job.origin or job.init:
            lines.append(self._inherit(detector, job))

        def log(line: dict) -> None:
            lines.append({"phase": job.phase, **line})
            progress(line["epoch"] / job.epochs)

        metrics, error = {}, ""
        try:
            train_data, val_data = self.train_data.at(job.blueprint.input), self.val_data.at(job.blueprint.input)
            averaged = train(detector, train_data, self.config, job.epochs, job.seed, log) if job.epochs else detector
            metrics = self._score(averaged, val_data, job.phase)
            lines.append({"phase": job.phase, "epoch": job.epochs, **metrics})
            save_weights(job.folder / job.weights, averaged, job.blueprint, [c.name for c in self.train_data.split.classes])
        except Diverged as diverged:
            error = str(diverged)
            lines.append({"phase": job.phase, "epoch": lines[-1].get("epoch", 0.0) if lines else 0.0, "error": error})
        write_metrics(job.folder / METRICS_FILE, job.phase, lines)
        return Evaluation(metrics, time.monotonic() - begin, error)

    def _inherit(self, detector: Detector, job: Job) -> dict:
        if job.origin is None:
            return {"phase": job.phase, "epoch": 0.0, "inherited": start_from(detector, job.init).to_dict()}
        _, _, state = load_weights(job.origin)
        if job.lineage is not None:
            return {"phase": job.phase, "epoch": 0.0, "inherited": inherit(detector, state, job.lineage).to_dict()}
        detector.load_state_dict(state)
        return {"phase": job.phase, "epoch": 0.0, "inherited": {"copied": len(state), "fresh": 0, "mismatched": []}}

    def _score(self, averaged, data: DetectionData, phase: str) -> dict[str, float]:
        results = detect(averaged, data, self.config.batch_size, self.config.precision)
        metrics = coco_metrics(data.split, results, final=phase == "final")
        if not all(map(math.isfinite, metrics.values())):
            raise Diverged(f"AP is {metrics['ap']}: the detector's boxes or scores are no numbers")
        return metrics


def write_metrics(path: Path, phase: str, lines: list[dict]) -> None:
    """Replaces the lines of `phase` in a metrics file and keeps those of other phases, and any that cannot be read."""

    def of_this_phase(line: str) -> bool:
        try:
            return json.loads(line)["phase"] == phase
        except (ValueError, LookupError, TypeError):
            return False

    kept = []
    if path.is_file():
        kept = [line for line in path.read_text(errors="replace").splitlines() if not of_this_phase(line)]
    write_atomic(path, "".join(f"{line}\n" for line in [*kept, *map(json.dumps, lines)]))
