"""What the oracle needs from an engine. An engine runs ONNX models and knows nothing of detectors.

Adding one: a module with a class like `fastnas.latency.onnxruntime.OnnxRuntime`, and its line in ENGINES.
"""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import onnx

from fastnas.errors import FastnasError, InputError
from fastnas.latency.processor import cpu_name, cpuinfo

PROTOCOL = 1  # of timing and synthetic inputs; counted up when a change makes old measurements incomparable
ENGINES = {"onnxruntime": ("fastnas.latency.onnxruntime", "OnnxRuntime")}


class Runner(Protocol):
    """A model that is ready to run: compiled, inputs and outputs in place."""

    def run(self) -> None:
        """Runs the model once and waits for it."""
        ...


class Engine(Protocol):
    """Made from a precision (None: the engine's default); raises InputError for one it does not have."""

    name: str
    version: str
    precision: str

    def clock(self) -> float:
        """Seconds; only differences count."""
        ...

    def environment(self) -> dict[str, Any]:
        """All that two measurements must share to be comparable; plain JSON values. See `environment`."""
        ...

    def prepare(self, model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> Runner: ...


def open_engine(text: str) -> Engine:
    """The engine written as NAME or NAME:PRECISION. Raises InputError (unknown) or FastnasError (not installed)."""
    name, colon, precision = text.partition(":")
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise InputError(f"unknown engine {name!r}{hint} (known: {', '.join(ENGINES)})")
    module, cls = ENGINES[name]
    try:
        make = getattr(importlib.import_module(module), cls)
    except ImportError as error:
        raise FastnasError(f"engine {name} cannot run here: {error} (install it with: pip install {name})") from None
    return make(precision if colon else None)


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
