"""Which candidates are on the front, and how good it is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastnas.report import units
from fastnas.search import pareto
from fastnas.search.front import final_front, search_front
from fastnas.search.record import FINISHED, Record


@dataclass(frozen=True)
class Front:
    """The front of a study, fastest first.

    full: the members were trained in full and measured whole; else AP is the search's and the milliseconds are predicted.
    measured: false where the device is not here, so that milliseconds are predicted after full training too.
    dominated: trained in full, but another member is better in both; untrained: on the search's front without a full training.
    """

    members: list[Record]
    full: bool
    dominated: list[Record]
    untrained: list[Record]

    @property
    def measured(self) -> bool:
        return self.full and all(record.final.latency_ms is not None for record in self.members)


@dataclass(frozen=True)
class Score:
    """AP (0 to 1) and milliseconds of a record, after full training where there was one."""

    ap: float | None
    ap50: float | None
    ms: float


def score(record: Record, full: bool) -> Score:
    if full and record.final:
        return Score(record.final.ap, record.final.ap50, record.latency_ms)
    return Score(record.ap, record.ap50, record.predicted_ms)


def is_scored(record: Record) -> bool:
    """Finished with an AP and a latency that can be compared."""
    return record.state == FINISHED and units.known(record.ap) and units.known(record.predicted_ms)


def has_final(record: Record) -> bool:
    return record.final is not None and units.known(record.final.ap) and units.known(record.latency_ms)


def find_front(records: Sequence[Record]) -> Front:
    """The front of the full trainings where there are any, else the search's."""
    searched = search_front(records)
    finals = sorted(filter(has_final, records), key=lambda r: (r.latency_ms, r.id))
    if not finals:
        return Front(searched, False, [], [])
    members = final_front(finals)
    on_front = {record.id for record in members}
    return Front(
        members,
        True,
        [record for record in finals if record.id not in on_front],
        [record for record in searched if not has_final(record)],
    )


def hypervolume(points: Iterable[tuple[float, float]], worst_ms: float) -> float:
    """Share of the box from (AP 0, `worst_ms`) to (AP 1, 0 ms) that the (AP, ms) points dominate (Zitzler & Thiele 1998)."""
    return pareto.hypervolume([(1 - ap, ms) for ap, ms in points], (1.0, worst_ms)) / worst_ms
