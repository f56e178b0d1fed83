"""Latency tables that travel: JSON lines with a checksum, and merging. Plain text, so nothing of it can be executed.

    {"fastnas_latency_table": 1}
    {"environment": {...}, "baselines": {...}}
    {"block": {...}, "median_ms": ..., "min_ms": ..., "spread": ..., "count": ...}        entries of the environment above
    {"network": "...", ..., "mix": {...}}                                                 networks measured whole
    {"lines": N, "sha256": "..."}                                                         of all bytes before this line
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastnas.errors import InputError
from fastnas.files import write_atomic
from fastnas.latency.table import LatencyTable, mixed_factor
from fastnas.latency.timing import REFERENCES, Timing, reference_of

FORMAT = 1


@dataclass
class Measured:
    """All that was measured in one environment."""

    description: dict[str, Any]
    baselines: dict[str, float]
    blocks: dict[str, Timing] = field(default_factory=dict)  # by Spec.key
    networks: dict[str, tuple[Timing, dict[str, float]]] = field(default_factory=dict)  # by text; timing and mix


def contents(table: LatencyTable) -> list[Measured]:
    """Everything in a table. Raises InputError where it is damaged."""
    found = []
    for listed in table.environments():
        description = {key: value for key, value in listed.items() if key != "entries"}
        row = table.environment(description)
        if row is None:
            raise table.damaged(f"the hash of {description!r} does not fit")
        found.append(Measured(description, row.baselines, table.entries(row), table.networks(row)))
    for measured in found:
        for block in measured.blocks:
            table.reference(block)  # raises for what is no block
    return found


def export(table: LatencyTable, path: Path | str) -> int:
    """Writes a table as JSON lines, atomically; returns the number of entries. Raises InputError where `path` cannot be written."""
    lines, entries = [{"fastnas_latency_table": FORMAT}], 0
    for measured in contents(table):
        lines.append({"environment": measured.description, "baselines": measured.baselines})
        for block, timing in sorted(measured.blocks.items()):
            lines.append({"block": json.loads(block), **timing.to_dict()})
            entries += 1
        for text, (timing, mix) in sorted(measured.networks.items()):
            lines.append({"network": text, **timing.to_dict(), "mix": mix})
    body = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    end = {"lines": len(lines), "sha256": hashlib.sha256(body.encode()).hexdigest()}
    try:
        write_atomic(Path(path), body + json.dumps(end) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name a file in a folder that is there") from None
    return entries


def read_export(path: Path | str) -> list[Measured]:
    """Reads what `export` wrote. Raises InputError: no such file, damaged, cut off, or of a newer fastnas."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    body, newline, last = data.rstrip(b"\n").rpartition(b"\n")
    body += newline
    end, first = _parsed(last), _parsed(body.partition(b"\n")[0])
    if not isinstance(first, dict) or "fastnas_latency_table" not in first:
        raise InputError(f"{path} is no exported latency table (made with: fastnas table export)")
    if first["fastnas_latency_table"] != FORMAT:
        raise InputError(f"{path} has format {first['fastnas_latency_table']!r}, this fastnas reads {FORMAT}: update fastnas")
    if not isinstance(end, dict) or end.get("sha256") != hashlib.sha256(body).hexdigest():
        raise InputError(f"{path} is damaged or cut off: its checksum does not fit (export it again)")
    try:
        return list(_measured(json.loads(line) for line in body.decode().splitlines()[1:]))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} holds a line that fastnas cannot have written ({type(error).__name__}: {error})") from None


def merge(target: LatencyTable, source: list[Measured], add_environments: bool = False) -> int:
    """Takes over the entries of `source`; returns how many are new or better. All of it or nothing.

    Times only compare within one environment, so one that the target lacks is refused (InputError names what differs) unless
    the target is empty or `add_environments` is set: then it stands beside the others. Entries of both are scaled to the lower
    baselines of the two; of two entries for one block the one with the smaller spread stays.
    """
    known = target.environments()
    for measured in source:
        if target.environment(measured.description) is None and known and not add_environments:
            nearest = min((_different(measured.description, one) for one in known), key=len)
            raise InputError(
                f"{target.path} was measured in another environment ({', '.join(nearest)} differ): times would not compare;"
                " to keep both side by side add --add-environments"
            )
    with target.transaction():
        return sum(_merge_one(target, measured) for measured in source)


def _merge_one(target: LatencyTable, measured: Measured) -> int:
    row = target.environment(measured.description) or target.add_environment(measured.description, measured.baselines)
    if measured.baselines:
        row = target.lower_baselines(row, measured.baselines)
    # Without baselines: imported from elsewhere, and as it is.
    factors = {name: row.baselines[name] / measured.baselines[name] if row.baselines else 1.0 for name in REFERENCES}
    entries, networks = target.entries(row), target.networks(row)
    better = {
        block: _scaled(timing, factors[reference_of(block)])
        for block, timing in measured.blocks.items()
        if block not in entries or timing.spread < entries[block].spread
    }
    target.put_all(row, better)
    for text, (timing, mix) in measured.networks.items():
        if text not in networks:
            target.put_network(row, text, _scaled(timing, mixed_factor(factors, mix)), mix)
    return len(better)


def _scaled(timing: Timing, factor: float) -> Timing:
    return Timing(timing.median_ms * factor, timing.min_ms * factor, timing.spread, timing.count)


def _measured(lines: Iterator[dict]) -> Iterator[Measured]:
    current: Measured | None = None
    for line in lines:
        if "environment" in line:
            if current:
                yield current
            baselines = {str(name): _positive(value) for name, value in line["baselines"].items()}
            imported = "imported" in line["environment"]
            if set(baselines) != (set() if imported else set(REFERENCES)) or not isinstance(line["environment"], dict):
                raise ValueError(f"baselines {sorted(baselines)}")
            current = Measured(line["environment"], baselines)
        elif current is None:
            raise ValueError("an entry before any environment")
        elif "block" in line:
            block = json.dumps(line["block"], sort_keys=True, separators=(",", ":"))
            reference_of(block)
            current.blocks[block] = _timing(line)
        else:
            mix = {name: _positive(value) for name, value in line["mix"].items() if name in REFERENCES}
            if not mix:
                raise ValueError("a network without a mix")
            current.networks[str(line["network"])] = (_timing(line), mix)
    if current:
        yield current


def _timing(line: Mapping[str, Any]) -> Timing:
    spread = float(line["spread"])
    if not 0 <= spread < float("inf") or not isinstance(line["count"], int) or line["count"] < 1:
        raise ValueError(f"spread {spread}, count {line['count']!r}")
    return Timing(_positive(line["median_ms"]), _positive(line["min_ms"]), spread, line["count"])


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not 0 < float(value) < float("inf"):
        raise ValueError(f"{value!r} is no time")
    return float(value)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _different(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in (a.keys() | b.keys()) - {"entries"} if a.get(key) != b.get(key))
