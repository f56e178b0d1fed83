"""Weights file -> ONNX file, checked against PyTorch before it is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from fastnas.blueprint import Blueprint
from fastnas.blueprint.wiring import DETECTIONS
from fastnas.errors import InputError
from fastnas.export.check import Check, check_images, compare, reference
from fastnas.export.description import Description
from fastnas.export.predictor import OnnxPredictor
from fastnas.export.session import OnnxSession
from fastnas.files import write_atomic
from fastnas.models.detector import Detector
from fastnas.models.onnx import deployed_model, in_precision, map_outputs, raw_outputs
from fastnas.models.weights import load_detector

PRECISIONS = ("fp32", "fp16")
TARGETS = ("onnxruntime", "tensorrt")


@dataclass(frozen=True)
class Form:
    """raw: outputs are what the final suppression reads. batch: number of images, None: any.

    target: onnxruntime: the graph that this engine is timed with; tensorrt: the one that TensorRT takes (nothing inside has a
    size that depends on the data; at most 3840 candidates are sorted). precision: fp32 | fp16.
    """

    raw: bool = False
    batch: int | None = 1
    target: str = "onnxruntime"
    precision: str = "fp32"


@dataclass(frozen=True)
class Exported:
    """A model that was compared with PyTorch."""

    model: onnx.ModelProto
    description: Description
    check: Check


def export_onnx(
    weights: Path | str, form: Form = Form(), blueprint: Blueprint | None = None, images: Sequence[Path | str] = ()
) -> Exported:
    """The ONNX model of a weights file. images: files to check it with (default: noise).

    Raises InputError: no weights, weights of another blueprint, a form that this detector does not have. FastnasError: the model
    computes something else than PyTorch.
    """
    detector, classes = load_detector(weights, blueprint)
    description = Description(detector.network.blueprint, classes, form.precision)
    network = detector.network
    outputs = raw_outputs(network) if form.raw else DETECTIONS
    model = _model(detector, outputs, form)
    onnx.helper.set_model_props(model, description.to_metadata())
    return Exported(model, description, _check(detector, model, description, form, images))


def write_onnx(path: Path | str, exported: Exported) -> None:
    """Writes it atomically."""
    try:
        write_atomic(path, exported.model.SerializeToString())
    except FileNotFoundError:
        raise InputError(f"no folder {Path(path).parent}: make it, or name another --out") from None


def _model(detector: Detector, outputs: Sequence[str], form: Form) -> onnx.ModelProto:
    state = {name: tensor.numpy() for name, tensor in detector.state_dict().items()}
    model = deployed_model(detector.network, state, outputs, form.batch, static=form.target == "tensorrt")
    return in_precision(model, form.precision)


def _check(detector: Detector, model: onnx.ModelProto, description: Description, form: Form, files: Sequence[Path | str]) -> Check:
    """Runs the model itself, and where it ends in detections also the part that makes maps."""
    images = check_images(description.blueprint, max(form.batch or 2, len(files)), files)
    names = map_outputs(detector.network)
    found = OnnxPredictor(model.SerializeToString()).find(images)
    maps = _model(detector, names, form)
    values = OnnxSession(maps.SerializeToString()).run(images.numpy())
    kept = detector.network.steps[-1][0].spec.detections
    return compare(reference(detector, images, names), values, found, form.precision, kept)


def output_shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    """By name; a size that is known when the model runs has a name."""
    shapes = {info.name: info.type.tensor_type.shape.dim for info in model.graph.output}
    return {name: [dim.dim_param or dim.dim_value for dim in dims] for name, dims in shapes.items()}
