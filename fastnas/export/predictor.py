"""Detecting with a file: PyTorch weights (.safetensors) or ONNX that `fastnas export` wrote, with or without suppression.

    predictor = open_predictor("weights.safetensors")
    predictor.find(images)              # images of the blueprint's input size
    predict(predictor, "photo.jpg")     # any image file, boxes in its own pixels
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fastnas.blueprint import Blueprint, expand
from fastnas.blueprint.wiring import DETECTIONS
from fastnas.data.images import DecodeError, decode_rgb, read_header
from fastnas.errors import InputError
from fastnas.export.description import class_name
from fastnas.export.session import OnnxSession
from fastnas.models.fold import folded
from fastnas.models.onnx import raw_outputs
from fastnas.models.pixels import scale_and_shift
from fastnas.models.timed import BOX_MODULES
from fastnas.models.weights import load_detector

Found = dict[str, Tensor]  # boxes (D, 4) in input pixels, scores (D,) best first, labels (D,) from 1


class Predictor(Protocol):
    blueprint: Blueprint
    classes: list[str]

    def find(self, images: Tensor) -> list[Found]:
        """Detections of uint8 images (N, 3, H, W), RGB, of the blueprint's input size."""
        ...


def open_predictor(path: Path | str) -> Predictor:
    """Raises InputError: no such file, or neither weights nor an exported ONNX file."""
    return OnnxPredictor(path) if str(path).endswith(".onnx") else TorchPredictor(path)


class TorchPredictor:
    def __init__(self, path: Path | str):
        detector, self.classes = load_detector(path)
        self.blueprint = detector.network.blueprint
        self._detector = folded(detector.to(memory_format=torch.channels_last))

    @torch.no_grad()
    def find(self, images: Tensor) -> list[Found]:
        scale, shift = map(torch.from_numpy, scale_and_shift())
        return self._detector((images.float() * scale + shift).contiguous(memory_format=torch.channels_last))


class OnnxPredictor:
    """Runs in ONNX Runtime on the CPU; the final suppression is added where the file has none."""

    def __init__(self, model: Path | str | bytes):
        self._session = OnnxSession(model)
        described = self._session.description()
        self.blueprint, self.classes = described.blueprint, described.classes
        self._suppress = None if set(DETECTIONS) <= set(self._session.outputs) else Suppression(self.blueprint)

    def find(self, images: Tensor) -> list[Found]:
        outputs = {name: torch.from_numpy(value) for name, value in self._session.run(images.numpy()).items()}
        return [self._image(outputs, index) for index in range(len(images))]

    def _image(self, outputs: dict[str, Tensor], index: int) -> Found:
        if self._suppress:
            return self._suppress(outputs, index)
        kept = outputs["scores"][index] > 0
        return {name: outputs[name][index][kept] for name in DETECTIONS}


class Suppression:
    """The final block of a detector alone, for outputs that were exported without it."""

    def __init__(self, blueprint: Blueprint):
        network = expand(blueprint)
        block, use = network.steps[-1]
        self.names = raw_outputs(network)
        self._ranks = [len(shape) for shape in use.input_shapes]
        self._module = BOX_MODULES[type(block.spec)](block.spec, use.input_shapes)

    @torch.no_grad()
    def __call__(self, outputs: dict[str, Tensor], index: int) -> Found:
        """Detections of one image from values that hold several."""
        values = []
        for name, rank in zip(self.names, self._ranks, strict=True):
            value = outputs[name][index].float()
            values.append(value if value.ndim == rank else value[None])
        return dict(zip(DETECTIONS, self._module(*values), strict=True))


@dataclass(frozen=True)
class Detection:
    """box: x1, y1, x2, y2 in pixels of the image file."""

    label: int
    name: str
    score: float
    box: tuple[float, float, float, float]

    def to_dict(self) -> dict:
        return {"label": self.label, "class": self.name, "score": round(self.score, 5), "box": [round(x, 2) for x in self.box]}


def predict(predictor: Predictor, image: Path | str, score: float = 0.0) -> list[Detection]:
    """Detections with at least this score on an image file, best first. Raises InputError where it cannot be read."""
    height, width = predictor.blueprint.input
    try:
        header = read_header(Path(image))
        pixels = decode_rgb(Path(image), predictor.blueprint.input)
    except DecodeError as error:
        raise InputError(f"cannot read the image {image}: {error}") from None
    (found,) = predictor.find(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    scale = torch.tensor([header.width / width, header.height / height] * 2)
    rows = zip(*(values.tolist() for values in (found["boxes"] * scale, found["scores"], found["labels"])), strict=True)
    return [Detection(label, class_name(predictor.classes, label), s, tuple(box)) for box, s, label in rows if s >= score]
