"""The Pareto table for a terminal."""

from collections.abc import Sequence

from fastnas.report import units
from fastnas.report.front import Front, find_front, score
from fastnas.search.record import Record

COLUMNS = ("id", "AP", "AP50", "ms", "params", "MACs", "code")
EMPTY = "no candidate has finished yet"


def front_table(records: Sequence[Record]) -> str:
    """The front as aligned plain text, fastest first, with a line that says what the numbers are. No newline at the end."""
    front = find_front(records)
    if not front.members:
        return EMPTY
    rows = [COLUMNS, *front_rows(front)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)), row[-1]]).rstrip() for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, "", *front_notes(front)])


def front_rows(front: Front) -> list[tuple[str, ...]]:
    """The cells of `COLUMNS` for every member."""
    rows = []
    for record in front.members:
        found = score(record, front.full)
        rows.append(
            (
                str(record.id),
                units.ap(found.ap),
                units.ap(found.ap50),
                units.ms(found.ms),
                units.params(record.params),
                units.macs(record.macs),
                units.code(record.blueprint),
            )
        )
    return rows


def front_notes(front: Front) -> list[str]:
    """What the numbers of the table are, and what it leaves out."""
    if not front.full:
        return ["AP of the short training during the search, ms predicted by the latency table"]
    ms = "measured on whole networks" if front.measured else "predicted: the device is not here to measure on"
    notes = [f"AP after full training, ms {ms}"]
    if front.dominated:
        notes.append(f"also trained in full, but dominated: {_ids(front.dominated)}")
    if front.untrained:
        notes.append(f"on the front of the search, not trained in full: {_ids(front.untrained)}")
    return notes


def _ids(records: list[Record]) -> str:
    return ", ".join(str(record.id) for record in sorted(records, key=lambda record: record.id))
