"""Pure data: the grammar, the blueprint, its blocks and their counts. Never imports torch."""

from fastnas.blueprint.blueprint import Blueprint, Fpn, RoiHead, Rpn, SerialBackbone
from fastnas.blueprint.code import BlueprintError, validate_code
from fastnas.blueprint.expand import Block, Network, Use, expand
from fastnas.blueprint.lineage import Lineage
from fastnas.blueprint.load import load
from fastnas.blueprint.presets import PRESETS
from fastnas.blueprint.text import parse

__all__ = [
    "PRESETS",
    "Block",
    "Blueprint",
    "BlueprintError",
    "Fpn",
    "Lineage",
    "Network",
    "RoiHead",
    "Rpn",
    "SerialBackbone",
    "Use",
    "expand",
    "load",
    "parse",
    "validate_code",
]
