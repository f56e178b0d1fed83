"""Reading `candidates/ID/metrics.jsonl`: whatever can be read of it, and how much could not.

A line is {"phase", "epoch", "loss", "losses", "lr", "images_per_second"}, at the end of a training {"phase", "epoch", "ap", ...},
of a training that was stopped {"phase", "epoch", "error"}.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

TOTAL = "total"


@dataclass
class Training:
    """The curves of one training. Lists run along `epochs`; a number that was not finite or not there is None."""

    phase: str
    epochs: list[float | None] = field(default_factory=list)
    losses: dict[str, list[float | None]] = field(default_factory=lambda: {TOTAL: []})
    images_per_second: list[float] = field(default_factory=list)
    error: str = ""

    def add(self, epoch: float | None, losses: dict[str, float | None]) -> None:
        for name in losses:
            self.losses.setdefault(name, [None] * len(self.epochs))
        self.epochs.append(epoch)
        for name, values in self.losses.items():
            values.append(losses.get(name))


@dataclass
class Metrics:
    """All trainings of one candidate in the order of their first line; `bad_lines` could not be read."""

    trainings: dict[str, Training] = field(default_factory=dict)
    bad_lines: int = 0
    missing: bool = False


def read_metrics(path: Path) -> Metrics:
    """Reads what can be read. Never raises for a file that is missing, cut off or not what it should be."""
    result = Metrics()
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        result.missing = True
        return result
    for line in lines:
        if line.strip() and not _read_line(line, result.trainings):
            result.bad_lines += 1
    return result


def _read_line(line: bytes, trainings: dict[str, Training]) -> bool:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(entry, dict) or not isinstance(entry.get("phase"), str) or not _is_number(entry.get("epoch")):
        return False
    training = trainings.setdefault(entry["phase"], Training(entry["phase"]))
    if "error" in entry:
        training.error = str(entry["error"])
    if "loss" in entry:
        parts = entry.get("losses")
        parts = {str(name): _finite(value) for name, value in parts.items()} if isinstance(parts, dict) else {}
        if training.epochs and (training.epochs[-1] or 0) > entry["epoch"]:
            training.add(None, {})  # trained again from the start: the line is not drawn backwards
        training.add(_finite(entry["epoch"]), {TOTAL: _finite(entry["loss"]), **parts})
    if speed := _finite(entry.get("images_per_second")):
        training.images_per_second.append(speed)
    return True


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value) -> float | None:
    try:
        return float(value) if _is_number(value) and math.isfinite(value) else None
    except OverflowError:  # an integer too large for a float
        return None
