"""Everything the page shows of a study, read once."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastnas.report.front import Front, find_front, has_final, is_scored
from fastnas.report.metrics import Metrics, read_metrics
from fastnas.search.front import search_front
from fastnas.search.record import Record
from fastnas.search.study import Study

PROBLEMS_SHOWN = 100


@dataclass(frozen=True)
class Problems:
    """`data_problems.jsonl`: the first problems, how many there are of each kind, lines that could not be read."""

    shown: list[dict[str, Any]]
    counts: dict[str, int]
    bad_lines: int


@dataclass(frozen=True)
class Facts:
    """A study as the page needs it. `records` are in the order of their ids."""

    folder: Path
    space: str
    config: dict[str, Any]
    environment: dict[str, Any]
    records: list[Record]
    front: Front
    searched: list[Record]  # the front of the search, by predicted milliseconds
    metrics: dict[int, Metrics]
    problems: Problems | None
    by_id: dict[int, Record] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def ancestor(self) -> Record | None:
        """The first candidate without a parent that has an AP, else the first without a parent."""
        roots = [record for record in self.records if record.lineage.parent is None]
        return next(filter(is_scored, roots), roots[0] if roots else None)

    @property
    def finals(self) -> list[Record]:
        return [record for record in self.records if has_final(record)]

    @property
    def max_latency(self) -> float | None:
        """The limit in milliseconds, where the configuration has one."""
        return (self.config.get("limits") or {}).get("latency_ms")

    @property
    def shown(self) -> list[Record]:
        """Members of the front, then those trained in full but dominated."""
        return [*self.front.members, *self.front.dominated]


def gather(study: Study) -> Facts:
    """Reads a study and the files beside it."""
    records = sorted(study.records(), key=lambda record: record.id)
    folder = study.folder
    return Facts(
        folder,
        study.space,
        study.config,
        study.environment,
        records,
        find_front(records),
        search_front(records),
        {record.id: read_metrics(folder / "candidates" / str(record.id) / "metrics.jsonl") for record in records},
        _problems(folder / "data_problems.jsonl"),
        {record.id: record for record in records},
    )


def total_seconds(records: list[Record]) -> tuple[float, float]:
    """Seconds spent on search trainings and on full trainings."""
    return sum(record.seconds for record in records), sum(record.final.seconds for record in records if record.final)


def _problems(path: Path) -> Problems | None:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return None
    shown, counts, bad = [], {}, 0
    for line in filter(bytes.strip, lines):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            bad += 1
            continue
        kind = str(entry.get("kind", "unknown"))
        counts[kind] = counts.get(kind, 0) + 1
        if len(shown) < PROBLEMS_SHOWN:
            shown.append(entry)
    return Problems(shown, counts, bad)
