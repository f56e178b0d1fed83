"""Engines and devices that are not here, known by what a latency table holds of them.

Which environment of a table is priced:
- `device` named: the one whose device has this name, and whose engine, precision and settings are those asked for;
- else where the engine runs here: this machine's own, as ever;
- else the only one of this engine, precision and settings. Several are refused: a device has to be named.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastnas.errors import FastnasError, InputError
from fastnas.latency.engines import Engine, Runner, split_engine
from fastnas.latency.table import LatencyTable
from fastnas.models.workload import Workload


@dataclass(frozen=True)
class Recorded:
    """An engine in an environment that a table holds. It has all that an Engine has, but runs nothing."""

    description: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.description["engine"]

    @property
    def version(self) -> str:
        return self.description["version"]

    @property
    def precision(self) -> str:
        return self.description["precision"]

    def environment(self) -> dict[str, Any]:
        return dict(self.description)

    def clock(self) -> float:
        raise self._absent("time anything")

    def prepare(self, workload: Workload) -> Runner:
        raise self._absent(f"run {workload}")

    def _absent(self, what: str) -> FastnasError:
        return FastnasError(f"{self.name} on {self.description['device']} is not here to {what}: only its table is")


def choose_engine(path: Path, text: str, device: str | None, open_engine: Callable[[str], Engine]) -> Engine:
    """The engine that runs here, or what the table at `path` recorded of it; see above.

    Raises InputError: unknown engine, no such environment, or several. FastnasError: it cannot run here and the table has none.
    """
    try:
        live = open_engine(text)
    except InputError:
        raise
    except FastnasError as error:
        live, absent = None, error
    if live and device is None:
        return live
    if not path.is_file() and not live:
        raise absent
    found = _matching(path, text, device)
    if not found and device is None:
        raise absent
    if len(found) != 1:
        raise _not_one(path, text, device, found)
    return live if live and live.environment() == found[0] else Recorded(found[0])


def _matching(path: Path, text: str, device: str | None) -> list[dict[str, Any]]:
    name, precision, settings = split_engine(text)
    return [
        one
        for one in _environments(path)
        if one.get("engine") == name
        and (precision is None or one.get("precision") == precision)
        and (device is None or str(one.get("device")).casefold() == device.casefold())
        and all(one.get("settings", {}).get(key) == value for key, value in settings.items())
    ]


def _not_one(path: Path, text: str, device: str | None, found: list[dict[str, Any]]) -> InputError:
    if found:
        listed = "; ".join(sorted(f"{one['engine']}:{one['precision']} {one['version']} on {one['device']}" for one in found))
        return InputError(f"{path} holds {len(found)} environments of {text} ({listed}): name one with PRECISION and --device NAME")
    listed = "; ".join(sorted(f"{one.get('engine')}:{one.get('precision')} on {one.get('device')}" for one in _environments(path)))
    return InputError(f"{path} holds no environment of {text} on {device} (it holds: {listed or 'nothing'})")


def _environments(path: Path) -> list[dict[str, Any]]:
    table = LatencyTable(path, writable=False)
    try:
        return [{key: value for key, value in one.items() if key != "entries"} for one in table.environments()]
    finally:
        table.close()
