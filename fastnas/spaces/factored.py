"""Factored spaces: a blueprint is one choice on each of a few axes. EfficientDet's scaling and SM-NAS's structural level are such.

An axis is a field of a blueprint (`input`), a whole part (`neck`) or a field of a part (`neck.channels`); everything else is the
ancestor's. Combinations that no blueprint can have (a head that takes proposals without an rpn) are not in the space.

Genes: the index of each choice, in the order of the axes. What a choice costs depends on few of the others (a backbone's blocks on
the input, a head's on the pyramid), so the walk through the automaton remembers only what later axes depend on.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastnas.blueprint import Blueprint, BlueprintError
from fastnas.blueprint.blueprint import part_text
from fastnas.blueprint.parts import SLOTS
from fastnas.errors import InputError
from fastnas.spaces.genes import Transition
from fastnas.spaces.space import Mutation, same_blocks

TRIES = 200
MOST_CHOICES = 254  # of one axis: genes are bytes
Values = tuple  # one value an axis, in their order


@dataclass(frozen=True)
class Axis:
    """One choice. slot: field of Blueprint; field: of the part in that slot ("" for the slot's whole value).

    ordered: the choices have neighbours, smaller and larger.
    """

    slot: str
    field: str
    choices: Values
    ordered: bool = True

    @property
    def name(self) -> str:
        return f"{self.slot}.{self.field}" if self.field else self.slot

    def of(self, blueprint: Blueprint):
        part = getattr(blueprint, self.slot)
        return getattr(part, self.field, None) if self.field else part


@dataclass(frozen=True)
class FactoredSpace:
    """All valid combinations of the axes' choices.

    remember: from the choices on the first axes to all of them that the later axes depend on, in what they cost and in what can be
    combined. p_compound: probability that a mutation moves all ordered axes one step in the same direction, as compound scaling
    does; otherwise it moves `operations` axes, ordered ones to a neighbour, the others anywhere.
    """

    name: str
    ancestor: Blueprint
    axes: tuple[Axis, ...]
    remember: Callable[[Values], tuple] = tuple
    p_compound: float = 0.0
    p_cross: float = 0.0
    operations: int = 1

    def __post_init__(self):
        for axis in self.axes:
            if not 1 <= len(axis.choices) <= MOST_CHOICES:
                raise InputError(f"{axis.name} has {len(axis.choices)} choices, it must have 1 to {MOST_CHOICES}")
            if len(set(axis.choices)) < len(axis.choices):  # two ways to write one part
                raise InputError(f"a choice of {axis.name} is given twice")
        self.validate(self.ancestor)

    def validate(self, blueprint: Blueprint) -> None:
        for axis, known in zip(self.axes, self._index, strict=True):
            if axis.of(blueprint) not in known:
                raise InputError(f"{axis.name} is {show_choice(axis.of(blueprint))}, which is none of the space's choices")
        if self._with(self._values(blueprint)) != blueprint:
            names = ", ".join(axis.name for axis in self.axes)
            raise InputError(f"{blueprint.text} differs from the space's ancestor in more than {names}")

    def sample(self, rng: np.random.Generator) -> Blueprint:
        """Uniform over the valid combinations."""
        while True:
            drawn = self._with(tuple(axis.choices[rng.integers(len(axis.choices))] for axis in self.axes))
            if drawn is not None:
                return drawn

    def mutate(self, parent: Blueprint, rng: np.random.Generator) -> Mutation | None:
        before = self._values(parent)
        for _ in range(TRIES):
            compound = rng.random() < self.p_compound
            values = self._compound(before, rng) if compound else self._moved(before, rng, self.operations)
            for _ in self.axes:  # a move may need others to be combined: a head without proposals none of those that find them
                if (child := self._with(values)) is None:
                    values = self._moved(values, rng, 1)
            if child is not None and child != parent:
                return Mutation(child, self._changes(parent, child), same_blocks(parent, child))
        return None

    def cross(self, parent: Blueprint, other: Blueprint, rng: np.random.Generator) -> Mutation | None:
        """Each axis from either, with equal probability."""
        ours, theirs = self._values(parent), self._values(other)
        for _ in range(TRIES):
            picks = rng.random(len(self.axes)) < 0.5
            child = self._with(tuple(b if pick else a for a, b, pick in zip(ours, theirs, picks, strict=True)))
            if child is not None and child not in (parent, other):
                return Mutation(child, self._changes(parent, child), same_blocks(parent, child))
        return None

    # ------------------------------------------------------------------------------------------------------------------
    # Genes (see genes.py). A state is what is remembered of the axes read so far.

    @property
    def width(self) -> int:
        return len(self.axes)

    @property
    def symbols(self) -> int:
        return max(len(axis.choices) for axis in self.axes)

    def encode(self, blueprint: Blueprint) -> np.ndarray:
        return np.array([known[axis.of(blueprint)] for axis, known in zip(self.axes, self._index, strict=True)], np.uint8)

    def decode(self, genes: np.ndarray) -> Blueprint:
        if any(gene >= len(axis.choices) for axis, gene in zip(self.axes, genes, strict=True)):
            raise BlueprintError("a gene is no choice of its axis")
        decoded = self._with(tuple(axis.choices[gene] for axis, gene in zip(self.axes, genes, strict=True)))
        if decoded is None:
            raise BlueprintError("the choices of these genes cannot be combined")
        return decoded

    def transitions(self) -> Iterator[Transition]:
        states: dict[tuple, int] = {(): 0}
        layer: dict[tuple, Values] = {(): ()}  # remembered -> the choices so far of one blueprint in that state
        before: dict[tuple, Blueprint | None] = {(): None}
        for depth, axis in enumerate(self.axes):
            following: dict[tuple, Values] = {}
            reached: dict[tuple, Blueprint] = {}
            for state, prefix in layer.items():
                for symbol, choice in enumerate(axis.choices):
                    chosen = (*prefix, choice)
                    after = self._completed(chosen)
                    if after is None:
                        continue
                    end = (depth, self.remember(chosen))
                    if end not in following:
                        following[end], reached[end] = chosen, after
                        states[end] = len(states)
                    yield Transition(states[state], symbol, states[end], before[state], after)
            layer, before = following, reached

    def accepting(self, state: int) -> bool:
        return state in self._last_states

    @cached_property
    def _last_states(self) -> frozenset[int]:
        transitions = list(self.transitions())
        return frozenset(t.end for t in transitions) - {t.start for t in transitions}

    def _completed(self, chosen: Values) -> Blueprint | None:
        """The first valid blueprint that begins with these choices."""
        if len(chosen) == len(self.axes):
            return self._with(chosen)
        found = (self._completed((*chosen, choice)) for choice in self.axes[len(chosen)].choices)
        return next((blueprint for blueprint in found if blueprint is not None), None)

    # ------------------------------------------------------------------------------------------------------------------

    @cached_property
    def _index(self) -> list[dict]:
        return [{choice: index for index, choice in enumerate(axis.choices)} for axis in self.axes]

    def _values(self, blueprint: Blueprint) -> Values:
        return tuple(axis.of(blueprint) for axis in self.axes)

    def _with(self, values: Sequence) -> Blueprint | None:
        """The blueprint of these choices; None where they cannot be combined."""
        parts = {slot: getattr(self.ancestor, slot) for slot in ("input", *SLOTS)}
        fields: dict[str, dict] = {}
        for axis, value in zip(self.axes, values, strict=True):
            if axis.field:
                fields.setdefault(axis.slot, {})[axis.field] = value
            else:
                parts[axis.slot] = value
        try:
            changed = {slot: dataclasses.replace(parts[slot], **own) for slot, own in fields.items()}
            return Blueprint(**{**parts, **changed}, classes=self.ancestor.classes)
        except BlueprintError:
            return None

    def _compound(self, values: Values, rng: np.random.Generator) -> Values:
        step = 1 if rng.random() < 0.5 else -1
        return tuple(
            self._stepped(axis, index, value, step) if axis.ordered else value
            for index, (axis, value) in enumerate(zip(self.axes, values, strict=True))
        )

    def _moved(self, values: Values, rng: np.random.Generator, operations: int) -> Values:
        moved = list(values)
        for _ in range(operations):
            index = int(rng.integers(len(self.axes)))
            axis = self.axes[index]
            if axis.ordered:
                moved[index] = self._stepped(axis, index, moved[index], 1 if rng.random() < 0.5 else -1)
            else:
                moved[index] = axis.choices[rng.integers(len(axis.choices))]
        return tuple(moved)

    def _stepped(self, axis: Axis, index: int, value, step: int):
        return axis.choices[min(max(self._index[index][value] + step, 0), len(axis.choices) - 1)]

    def _changes(self, parent: Blueprint, child: Blueprint) -> tuple[str, ...]:
        pairs = ((axis, axis.of(parent), axis.of(child)) for axis in self.axes)
        return tuple(f"{axis.name} {show_choice(old)} -> {show_choice(new)}" for axis, old, new in pairs if old != new)


def show_choice(value) -> str:
    """A choice as it is written in the one-line form."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return part_text(value) if dataclasses.is_dataclass(value) else str(value)
