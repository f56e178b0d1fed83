"""What every space offers: an ancestor, sampling, mutation, validation. Pure functions of (blueprint, rng); no torch."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastnas.blueprint import Blueprint


@dataclass(frozen=True)
class Mutation:
    """A child with its origin: what was done, and which block of the parent each block of the child comes from."""

    blueprint: Blueprint
    operations: tuple[str, ...]
    blocks: dict[str, str]


class Space(Protocol):
    """The set of blueprints of one method."""

    name: str
    ancestor: Blueprint

    def sample(self, rng: np.random.Generator) -> Blueprint:
        """Any blueprint of the space."""

    def mutate(self, parent: Blueprint, rng: np.random.Generator) -> Mutation | None:
        """A child of `parent` inside the space that differs from it; None if none was found."""

    def validate(self, blueprint: Blueprint) -> None:
        """Raises InputError saying why a blueprint lies outside the space."""
