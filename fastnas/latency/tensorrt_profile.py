"""Layers of a TensorRT engine: what the inspector says they are, joined by name with what IProfiler measured.

The files are trtexec's (--exportLayerInfo, --exportProfile), so that its viewers (trex, Nsight Deep Learning Designer) open them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from types import ModuleType
from typing import Any

from fastnas.files import write_atomic
from fastnas.latency.engines import Layer


def make_profiler(trt: ModuleType) -> Any:
    """An IProfiler that collects milliseconds of every run by layer name, in `.times`."""

    class Profiler(trt.IProfiler):
        def __init__(self):
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name, ms):
            self.times.setdefault(layer_name, []).append(ms)

    return Profiler()


def inspect(trt: ModuleType, engine: Any) -> dict:
    """What `get_engine_information` says: `Layers`, and `Bindings` (10.x) or `I/O Tensors` (11.x)."""
    inspector = engine.create_engine_inspector()
    return json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def join(information: Mapping, times: Mapping[str, Sequence[float]]) -> list[Layer]:
    """Mean milliseconds of each layer in the engine's order. Layers that only the profiler knows come last, without a kind."""
    described = {}
    for layer in information.get("Layers", ()):
        if isinstance(layer, Mapping):  # a bare name where the engine was built without details
            described[layer["Name"]] = _kind(layer)
        else:
            described[layer] = ""
    unknown = [name for name in times if name not in described]
    order = [name for name in described if name in times] + unknown
    return [Layer(name, described.get(name, ""), fmean(times[name])) for name in order]


def _kind(layer: Mapping) -> str:
    """`reformat` for what TensorRT put in between to change a layout or type: it belongs to the border of two blocks."""
    return "reformat" if layer.get("Origin") == "REFORMAT" else layer.get("ParameterType") or layer.get("LayerType", "")


def write_layers(folder: Path, name: str, information: Mapping) -> Path:
    """`layers_NAME.json`."""
    return _write(folder / f"layers_{name}.json", information)


def write_profile(folder: Path, name: str, times: Mapping[str, Sequence[float]]) -> Path:
    """`profile_NAME.json`."""
    total = sum(sum(values) for values in times.values())
    rows: list[dict] = [{"count": max(map(len, times.values()), default=0)}]
    for layer, values in times.items():
        share = 100 * sum(values) / total if total else 0.0
        row = {"name": layer, "timeMs": sum(values), "averageMs": fmean(values), "medianMs": median(values)}
        rows.append({**row, "percentage": share})
    return _write(folder / f"profile_{name}.json", rows)


def _write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, indent=2))
    return path
