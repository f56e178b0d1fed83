"""What the oracle needs from an engine. An engine runs workloads and knows nothing of detectors.

Adding one: a module with a class like `fastnas.latency.onnxruntime.OnnxRuntime`, and its line in ENGINES.
"""

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastnas.errors import FastnasError, InputError
from fastnas.latency.processor import cpu_name, cpuinfo
from fastnas.models.workload import Workload

PROTOCOL = 2  # of timing and synthetic inputs; counted up when a change makes old measurements incomparable
_TENSORRT = "pip install 'fastnas[tensorrt]'; NVIDIA's libraries come from NVIDIA's own package index"
ENGINES = {  # name: module, class, how to install what it needs
    "onnxruntime": ("fastnas.latency.onnxruntime", "OnnxRuntime", "pip install onnxruntime"),
    "torch-cpu": ("fastnas.latency.torch_engine", "TorchCpu", "pip install torch"),
    "torch-cuda": ("fastnas.latency.torch_engine", "TorchCuda", "pip install torch"),
    "tensorrt": ("fastnas.latency.tensorrt", "TensorRt", _TENSORRT),
    "tensorrt-rtx": ("fastnas.latency.tensorrt", "TensorRtRtx", "pip install 'fastnas[tensorrt-rtx]'"),
}


@dataclass(frozen=True)
class Layer:
    """Milliseconds of one run that an engine's own profiler gives to one layer, node or operator."""

    name: str
    kind: str
    ms: float


class Runner(Protocol):
    """A workload that is ready to run: compiled, inputs and outputs in place."""

    graph: bool  # whether all that can be captured is replayed as a CUDA graph

    def run(self) -> None:
        """Runs it once and waits for it."""
        ...

    def layers(self, runs: int = 10) -> list[Layer]:
        """From profiled runs of their own, which are slower than `run`: shares count, not the sum."""
        ...


class Engine(Protocol):
    """Made from a precision (None: the engine's default) and settings; raises InputError for those it does not have."""

    name: str
    version: str
    precision: str

    def clock(self) -> float:
        """Seconds; only differences count. On a GPU: what its events measured of all runs so far."""
        ...

    def environment(self) -> dict[str, Any]:
        """All that two measurements must share to be comparable; plain JSON values. See `environment`."""
        ...

    def prepare(self, workload: Workload) -> Runner:
        """Raises FastnasError with the engine's own message where it cannot run this workload."""
        ...


def open_engine(text: str) -> Engine:
    """The engine written as NAME, NAME:PRECISION or NAME[:PRECISION],SETTING=VALUE,...

    Raises InputError: unknown engine, precision or setting. FastnasError: not installed, or no device that it can use.
    """
    name, precision, settings = split_engine(text)
    module, cls, install = ENGINES[name]
    try:
        make = getattr(importlib.import_module(module), cls)
        return make(precision, settings)
    except (ImportError, OSError) as error:
        raise FastnasError(f"engine {name} cannot run here: {' '.join(str(error).split())} (install it with: {install})") from None


def split_engine(text: str) -> tuple[str, str | None, dict[str, str]]:
    """(name, precision, settings) of an engine as it is written. Raises InputError: unknown engine, or no such form."""
    head, *pairs = text.split(",")
    name, colon, precision = head.partition(":")
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise InputError(f"unknown engine {name!r}{hint} (known: {', '.join(ENGINES)})")
    if bad := [pair for pair in pairs if "=" not in pair]:
        raise InputError(f"engine {text!r}: expected SETTING=VALUE after a comma, got {bad[0]!r}")
    return name, precision if colon else None, dict(pair.split("=", 1) for pair in pairs)


def choose(engine: str, what: str, value: str | None, known: Sequence[str] | range) -> str:
    """`value`, or the first of `known` for None. Raises InputError for a value that is not known."""
    texts = [str(item) for item in known]
    if value is None:
        return texts[0]
    if value not in texts:
        listed = f"{known[0]} to {known[-1]}" if isinstance(known, range) else ", ".join(texts)
        raise InputError(f"engine {engine} has no {what} {value!r} (known: {listed})")
    return value


def choose_settings(engine: str, given: Mapping[str, str] | None, known: Mapping[str, Sequence[str] | range]) -> dict[str, str]:
    """All settings of an engine: those given, the first of the known values for the others. Raises InputError as `choose`."""
    given = dict(given or {})
    for name in given:
        choose(engine, "setting", name, list(known))
    return {name: choose(engine, name, given.get(name), values) for name, values in known.items()}


def environment(engine: Engine, device: dict[str, Any], threads: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The common form of `Engine.environment`."""
    return {
        "engine": engine.name,
        "version": engine.version,
        **device,
        "precision": engine.precision,
        "batch": 1,
        "threads": threads,
        "settings": settings,
        "protocol": PROTOCOL,
    }


def cpu() -> dict[str, str]:
    """`device`: the processor's name; `device_id`: what tells apart processors that share a name (virtual machines hide it)."""
    fields = cpuinfo()
    known = ("cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant")
    return {"device": cpu_name(fields), "device_id": ", ".join(f"{key} {fields[key]}" for key in known if key in fields)}


def gpu(name: str, capability: tuple[int, int], memory_bytes: int) -> dict[str, str]:
    """As `cpu`, and the driver, whose version changes what kernels cost to start."""
    driver = Path("/sys/module/nvidia/version")
    return {
        "device": name,
        "device_id": f"sm_{capability[0]}{capability[1]}, {memory_bytes} bytes",
        "driver": driver.read_text().strip() if driver.is_file() else "unknown",
    }


def cannot_run(engine: Engine, workload: Workload, reason: object) -> FastnasError:
    """What `prepare` raises: the engine's own words in one line."""
    kind = InputError if isinstance(reason, InputError) else FastnasError
    return kind(f"engine {engine.name} cannot run {workload}: {' '.join(str(reason).split())}")
