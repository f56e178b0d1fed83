"""What an exported file says about itself: enough to detect with it and to name what was found."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastnas.blueprint import Blueprint, parse
from fastnas.errors import InputError

FORMAT = "fastnas"


@dataclass(frozen=True)
class Description:
    """classes: names of labels 1, 2, ...; empty where they are not known. precision: fp32 | fp16, of the inside."""

    blueprint: Blueprint
    classes: list[str]
    precision: str = "fp32"

    def to_metadata(self) -> dict[str, str]:
        """Texts by key, as ONNX keeps them."""
        height, width = self.blueprint.input
        return {
            "format": FORMAT,
            "blueprint": self.blueprint.text,
            "classes": json.dumps(self.classes),
            "precision": self.precision,
            "image": f"RGB, 0 to 255, scaled to {height} x {width} (height x width, bilinear with antialias); normalized inside",
            "boxes": "x1, y1, x2, y2 in pixels of the scaled image; labels count from 1; rows with score 0 are no detections",
        }

    @staticmethod
    def from_metadata(metadata: Mapping[str, str], source: Any) -> "Description":
        """Raises InputError that names `source`, the file."""
        if metadata.get("format") != FORMAT:
            raise InputError(f"{source} does not name its blueprint: it was not written by fastnas export")
        try:
            classes = json.loads(metadata["classes"])
            if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
                raise ValueError
            return Description(parse(metadata["blueprint"]), classes, metadata.get("precision", "fp32"))
        except (KeyError, ValueError, RecursionError, InputError):
            raise InputError(f"{source} is damaged: its blueprint or its classes cannot be read") from None


def class_name(classes: list[str], label: int) -> str:
    """The name of a label, which counts from 1."""
    return classes[label - 1] if label <= len(classes) else f"class {label}"
