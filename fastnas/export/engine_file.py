"""Weights file -> TensorRT engine file, through the engine that the oracle times with; a description lies beside it.

The ONNX model it is built from is compared with PyTorch first. An engine runs on the version of TensorRT and the kind of GPU that
built it.
"""

import json
from pathlib import Path
from typing import Protocol

import onnx

from fastnas.errors import FastnasError, InputError
from fastnas.export.onnx_file import Exported, output_shapes
from fastnas.files import write_atomic
from fastnas.latency.engines import open_engine

SUFFIXES = (".engine", ".plan")


class Builder(Protocol):
    """An engine of the oracle that makes engine files."""

    name: str
    precision: str

    def build(self, model: onnx.ModelProto) -> bytes: ...
    def environment(self) -> dict: ...


def open_builder(engine: str) -> Builder:
    """engine: `tensorrt` or `tensorrt-rtx`, with precision and settings as `open_engine` takes them.

    Raises FastnasError: it is not installed or has no GPU here. InputError: an engine or a precision that cannot be exported.
    """
    name, _, precision = engine.split(",")[0].partition(":")
    if name not in ("tensorrt", "tensorrt-rtx"):
        raise InputError(f"engine {name!r} builds no engine files: choose tensorrt or tensorrt-rtx")
    if precision == "int8":
        raise InputError("int8 needs scales that are measured on your data, which is not there yet: choose fp16 or fp32")
    return open_engine(engine)


def write_engine(path: Path | str, exported: Exported, builder: Builder) -> Path:
    """Builds and writes the engine, and FILE.json that describes it; returns the path of that. `exported`: float32, for TensorRT.

    Raises FastnasError where this model cannot be built.
    """
    described = {**exported.description.to_metadata(), "precision": builder.precision, "outputs": output_shapes(exported.model)}
    described |= {"environment": builder.environment(), "check": exported.check.to_dict()}
    try:
        plan = builder.build(exported.model)
    except FastnasError as error:
        raise FastnasError(f"engine {builder.name} cannot build {exported.description.blueprint.text}: {error}") from None
    beside = Path(f"{path}.json")
    try:
        write_atomic(path, plan)
        write_atomic(beside, json.dumps(described, indent=1))
    except FileNotFoundError:
        raise InputError(f"no folder {Path(path).parent}: make it, or name another --out") from None
    return beside
