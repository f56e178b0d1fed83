"""The rows of a record as aligned text. Loads no torch: gpu.sh prints what others have measured."""

from collections.abc import Mapping
from typing import Any

OURS = "fastnas"

COLUMNS = ["row", "thr", "fastnas ms (min)", "strongest peer", "its ms (min)", "x median", "x min", "x graph", "goal", ""]
COLUMNS += ["GB/s", "% copy", "bound"]
LEFT = {"row", "strongest peer", ""}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = [COLUMNS, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    aligned = [str.ljust if title in LEFT else str.rjust for title in COLUMNS]

    def show(line: list[str]) -> str:
        return "  ".join(align(cell, width) for align, cell, width in zip(aligned, line, widths, strict=True)).rstrip()

    return "\n".join(map(show, lines))


def _cells(row: dict[str, Any]) -> list[str]:
    ours, peer = row["timings"][OURS], row["strongest"]
    goal = row["goal"]
    if isinstance(goal, Mapping):
        goal = "/".join(f"{least:g}" for least in goal.values())
    elif goal is not None:
        goal = f"{goal:g}"
    return [
        " ".join(row[key] for key in ("operator", "shape", "dtype", "layout", "direction")),
        "" if row["threads"] is None else str(row["threads"]),
        _milliseconds(ours),
        peer or "",
        _milliseconds(row["timings"][peer]) if peer else "",
        f"{row['speedup_median']:.3g}" if peer else "",
        f"{row['speedup_min']:.3g}" if peer else "",
        f"{row['speedup_graph']:.3g}" if "speedup_graph" in row else "",
        goal or "",
        {True: "reached", False: "MISSED", None: ""}[row["reached"]],
        f"{row['gbps']:.3g}" if "gbps" in row else "",
        f"{row['percent_of_copy']:.0f}" if "gbps" in row else "",
        f"{row['bound_median']:.3g}" if "bound_median" in row else "",
    ]


def _milliseconds(timing: dict[str, Any]) -> str:
    return "error" if "error" in timing else f"{timing['median_ms']:.4g} ({timing['min_ms']:.4g})"


def progress(row: dict[str, Any]) -> str:
    """One line as soon as a row is done: every candidate, with what it raised."""
    shown = [f"{name} {_milliseconds(t)}" + (f" [{t['error']}]" if "error" in t else "") for name, t in row["timings"].items()]
    return f"{_cells(row)[0]} {_cells(row)[1]}: " + ", ".join(shown)
