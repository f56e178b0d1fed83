"""SM-NAS, structural level (Yao et al., "Structural-to-Modular Neural Architecture Search for Object Detection", AAAI 2020).

A detector is one choice each of input size, backbone, neck, region proposals and head. The parts of the chosen combination are then
refined by the modular level (`modular.py`).
"""

from dataclasses import dataclass

from fastnas.blueprint import Blueprint
from fastnas.blueprint.presets import RESNET18, RESNET50, RESNET101
from fastnas.blueprint.text import parse_input, parse_part
from fastnas.spaces.factored import Axis, FactoredSpace
from fastnas.spaces.rules import OPERATIONS, PROBABILITY, STRICT, check, check_choices


@dataclass(frozen=True)
class StructuralRules:
    """The choices, each as it is written in the one-line form of a blueprint; `none`: the part is left out."""

    inputs: tuple[str, ...] = ("512x512", "600x800", "720x1080", "800x1333")  # HEIGHTxWIDTH
    backbones: tuple[str, ...] = (
        f"basic:{RESNET18}",
        f"basic:{RESNET50}",
        f"bottleneck:{RESNET50}",
        f"bottleneck:{RESNET101}",
        f"resnext32x4d:{RESNET50}",
        f"resnext32x4d:{RESNET101}",
    )
    necks: tuple[str, ...] = tuple(
        f"fpn:{width},levels={first}-{last}" for width in (128, 256, 512) for first in range(2, 6) for last in range(first, 8)
    )  # the paper's P1 to P6
    rpns: tuple[str, ...] = ("rpn:1000", "garpn:300", "none")
    heads: tuple[str, ...] = ("rcnn:1024", "cascade:2", "cascade:3", "cascade:4", "retinanet:4")
    p_cross: float = 0.3
    operations: int = 1

    __pydantic_config__ = STRICT

    def __post_init__(self):
        check(self, p_cross=PROBABILITY, operations=OPERATIONS)
        check_choices(self, "inputs", "backbones", "necks", "rpns", "heads")


def structural_space(ancestor: Blueprint, rules: StructuralRules) -> FactoredSpace:
    """All that the rules combine, as far as such detectors exist. Raises InputError."""
    texts = (("backbone", rules.backbones), ("neck", rules.necks), ("rpn", rules.rpns), ("head", rules.heads))
    parts = (Axis(slot, "", tuple(parse_part(slot, text) for text in own), ordered=False) for slot, own in texts)
    axes = (Axis("input", "", tuple(map(parse_input, rules.inputs)), ordered=False), *parts)
    return FactoredSpace("smnas", ancestor, axes, _remembered, p_cross=rules.p_cross, operations=rules.operations)


def _remembered(values: tuple) -> tuple:
    """Behind a pyramid nothing sees more of the backbone than which levels it has."""
    if len(values) < 3:
        return values
    size, backbone, *others = values
    return size, backbone.maps, *others
