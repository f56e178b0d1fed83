"""Genes: blueprints of a space as fixed-width rows of small numbers, and how their costs add up, for pricing by the thousand.

A row is a word over the space's symbols, filled up with END. Its price is the sum along a walk through a weighted automaton
(Mohri, "Weighted automata algorithms", 2009): reading a symbol in a state costs what the blueprint grows by. A space only says
which blueprint stands for a state and which one after the symbol; the costs are differences of their prices, so whatever
`expand` counts is in them and nothing is said twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastnas.blueprint import Blueprint

END = 255  # no more genes in this row


@dataclass(frozen=True)
class Transition:
    """Reading `symbol` in state `start` leads to state `end`; the cost is the price of `after` less that of `before`.

    before: None at the very start, where a blueprint costs nothing yet. after: None where nothing is added.
    """

    start: int
    symbol: int
    end: int
    before: Blueprint | None
    after: Blueprint | None


class Encoded(Protocol):
    """A space whose blueprints have genes."""

    width: int  # of a row
    symbols: int  # genes are 0 to symbols - 1, or END

    def encode(self, blueprint: Blueprint) -> np.ndarray:
        """The genes of a blueprint of this space, uint8 [width]."""

    def decode(self, genes: np.ndarray) -> Blueprint:
        """The blueprint of a row. Raises BlueprintError for a row that is none."""

    def transitions(self) -> Iterator[Transition]:
        """All transitions, those that are fewest steps from the start first. Walks begin in state 0."""

    def accepting(self, state: int) -> bool:
        """Whether a row may end here."""
