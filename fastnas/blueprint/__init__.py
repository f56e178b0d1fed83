"""Pure data: the grammar, the blueprint, its blocks and their counts. Never imports torch."""

from fastnas.blueprint.blueprint import Blueprint
from fastnas.blueprint.code import BlueprintError, validate_code
from fastnas.blueprint.expand import expand
from fastnas.blueprint.lineage import Lineage
from fastnas.blueprint.load import load
from fastnas.blueprint.parts import (
    Bifpn,
    C4Head,
    CascadeHead,
    EffdetHead,
    EfficientNet,
    Fpn,
    GuidedRpn,
    MobileNetV2,
    NoNeck,
    RetinaHead,
    RoiHead,
    Rpn,
    SerialBackbone,
)
from fastnas.blueprint.presets import PRESETS
from fastnas.blueprint.text import parse
from fastnas.blueprint.wiring import Block, Network, Use

__all__ = [
    "PRESETS",
    "Bifpn",
    "Block",
    "Blueprint",
    "BlueprintError",
    "C4Head",
    "CascadeHead",
    "EffdetHead",
    "EfficientNet",
    "Fpn",
    "GuidedRpn",
    "Lineage",
    "MobileNetV2",
    "Network",
    "NoNeck",
    "RetinaHead",
    "RoiHead",
    "Rpn",
    "SerialBackbone",
    "Use",
    "expand",
    "load",
    "parse",
    "validate_code",
]
