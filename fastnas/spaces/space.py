"""What every space offers: an ancestor, sampling, mutation, crossing, validation. Pure functions of (blueprint, rng); no torch."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastnas.blueprint import Blueprint, expand


@dataclass(frozen=True)
class Mutation:
    """A child with its origin: what was done, and which block of the parent each block of the child comes from."""

    blueprint: Blueprint
    operations: tuple[str, ...]
    blocks: dict[str, str]


class Space(Protocol):
    """The set of blueprints of one level of a method."""

    name: str
    ancestor: Blueprint
    p_cross: float  # share of the children that two parents have, once there are two

    def sample(self, rng: np.random.Generator) -> Blueprint:
        """Any blueprint of the space."""

    def mutate(self, parent: Blueprint, rng: np.random.Generator) -> Mutation | None:
        """A child of `parent` inside the space that differs from it; None if none was found."""

    def cross(self, parent: Blueprint, other: Blueprint, rng: np.random.Generator) -> Mutation | None:
        """A child inside the space with something of both that equals neither; it inherits from `parent`. None: none was found."""

    def validate(self, blueprint: Blueprint) -> None:
        """Raises InputError saying why a blueprint lies outside the space."""


def same_blocks(parent: Blueprint, child: Blueprint) -> dict[str, str]:
    """The block map of a child that keeps the names of its blocks: those that both have, of one kind, whatever their width."""
    kinds = {block.name: _kind(block.spec) for block in expand(parent).blocks}
    named = ((block.name, _kind(block.spec)) for block in expand(child).blocks if block.params)
    return {name: name for name, kind in named if kinds.get(name) == kind}


def _kind(spec) -> tuple[str, str | None]:
    return spec.op, getattr(spec, "kind", None)
