"""The sets of blueprints that the methods search. Never imports torch.

A method has one or more levels, each with rules and the space that they make of an ancestor. A new one is registered in LEVELS.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fastnas.blueprint import Blueprint
from fastnas.spaces.efficientdet import CompoundRules, efficientdet_space
from fastnas.spaces.factored import FactoredSpace
from fastnas.spaces.modular import ModularRules, ModularSpace
from fastnas.spaces.parallel import ParallelRules, ParallelSpace
from fastnas.spaces.smnas import StructuralRules, structural_space
from fastnas.spaces.space import Mutation, Space
from fastnas.spaces.spnas import VEGA_V1, SerialRules, SerialSpace


@dataclass(frozen=True)
class Level:
    """rules: a dataclass; space: from (ancestor, rules), raising InputError where they do not fit each other."""

    rules: type
    space: Callable[[Blueprint, object], Space]


# By method, then by name; the first level of a method is its default.
LEVELS: dict[str, dict[str, Level]] = {
    "spnas": {"serial": Level(SerialRules, SerialSpace), "parallel": Level(ParallelRules, ParallelSpace)},
    "smnas": {"structural": Level(StructuralRules, structural_space), "modular": Level(ModularRules, ModularSpace)},
    "efficientdet": {"compound": Level(CompoundRules, efficientdet_space)},
}

__all__ = [
    "LEVELS",
    "VEGA_V1",
    "CompoundRules",
    "FactoredSpace",
    "Level",
    "ModularRules",
    "ModularSpace",
    "Mutation",
    "ParallelRules",
    "ParallelSpace",
    "SerialRules",
    "SerialSpace",
    "Space",
    "StructuralRules",
    "efficientdet_space",
    "structural_space",
]
