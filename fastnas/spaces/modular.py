"""SM-NAS, modular level: the layout of a backbone and the widths of a detector that the structural level chose.

A backbone is a base width and a code of four stages with exactly three doublings, wherever they stand. Operators of the authors'
code: move the base to a neighbouring width; insert a `1`; remove a `1`; exchange a `2` or a stage boundary with its neighbour.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fastnas.blueprint import Blueprint, BlueprintError
from fastnas.errors import InputError
from fastnas.spaces.genes import END, Transition
from fastnas.spaces.rules import OPERATIONS, PROBABILITY, STRICT, check, check_choices
from fastnas.spaces.space import Mutation
from fastnas.spaces.spnas import (
    SYMBOLS,
    Genome,
    block_map,
    check_serial,
    check_size,
    code_of,
    crossed,
    genome_of,
    swap_boundary,
    swap_doubling,
)

STAGES, DOUBLINGS = 4, 3
TRIES = 200
ONE, TWO, BOUNDARY = (SYMBOLS.index(symbol) for symbol in "12-")


@dataclass(frozen=True)
class ModularRules:
    """The widths, how long a backbone may be, and how mutations move. Each width stays what it is with a probability of a half."""

    bases: tuple[int, ...] = (48, 56, 64, 72)
    channels: tuple[int, ...] = (128, 256, 512)  # of the neck
    hidden: tuple[int, ...] = (1024,)  # of the head
    min_blocks: int = 5
    max_blocks: int = 15
    p_cross: float = 0.2
    operations: int = 3

    __pydantic_config__ = STRICT

    def __post_init__(self):
        check(self, p_cross=PROBABILITY, operations=OPERATIONS, max_blocks=(STAGES, 200), min_blocks=(STAGES, self.max_blocks))
        check_choices(self, "bases", "channels", "hidden")


@dataclass(frozen=True)
class ModularSpace:
    """All layouts and widths that the rules allow; input, rpn and the kinds of block, neck and head are the ancestor's."""

    ancestor: Blueprint
    rules: ModularRules = field(default_factory=ModularRules)
    name: str = "smnas"

    def __post_init__(self):
        self.validate(self.ancestor)

    @property
    def p_cross(self) -> float:
        return self.rules.p_cross

    def validate(self, blueprint: Blueprint) -> None:
        check_serial(blueprint)
        if not hasattr(blueprint.head, "hidden"):
            raise InputError(f"{blueprint.text} has no head with hidden layers")
        code, rules = blueprint.backbone.code, self.rules
        blocks = len(code) - code.count("-")
        if code.count("-") != STAGES - 1 or code.count("2") != DOUBLINGS:
            raise InputError(f"{code} must have {STAGES} stages and {DOUBLINGS} doublings")
        check_size(code, "blocks", blocks, rules.min_blocks, rules.max_blocks)
        for name, width, known in zip(("base", "channels", "hidden"), _widths(blueprint), self._choices, strict=True):
            if width not in known:
                raise InputError(f"{name} is {width}, the space has {', '.join(map(str, known))}")

    def sample(self, rng: np.random.Generator) -> Blueprint:
        """Uniform over the widths, the number of blocks, the places of the doublings and those of the boundaries."""
        while True:
            base, channels, hidden = (widths[rng.integers(len(widths))] for widths in self._choices)
            length = int(rng.integers(self.rules.min_blocks, self.rules.max_blocks + 1))
            digits = np.full(length, "1")
            digits[rng.choice(length, DOUBLINGS, replace=False)] = "2"
            cuts = [0, *sorted(rng.choice(np.arange(1, length), STAGES - 1, replace=False)), length]
            code = "-".join("".join(digits[a:b]) for a, b in zip(cuts, cuts[1:], strict=False))
            if (blueprint := self._with(base, channels, hidden, code)) is not None:
                return blueprint

    def mutate(self, parent: Blueprint, rng: np.random.Generator) -> Mutation | None:
        for _ in range(TRIES):
            widths, done = [], []
            for name, width, known in zip(("base", "channels", "hidden"), _widths(parent), self._choices, strict=True):
                widths.append(_neighbour(width, known, rng) if rng.random() < 0.5 else width)
                done += [f"{name} {width} -> {widths[-1]}"] if widths[-1] != width else []
            genome = genome_of(parent.backbone.code)
            for _ in range(self.rules.operations):
                genome, what = _edit(genome, rng)
                done += [what] if what else []
            child = self._checked(*widths, code_of(genome))
            if child is not None and child != parent:
                return Mutation(child, tuple(done), block_map(genome, parent, child))
        return None

    def cross(self, parent: Blueprint, other: Blueprint, rng: np.random.Generator) -> Mutation | None:
        """Each width from either; the first stages of the parent's backbone and the last ones of the other's."""
        for _ in range(TRIES):
            widths = [pair[rng.integers(2)] for pair in zip(_widths(parent), _widths(other), strict=True)]
            genome, what = crossed(parent.backbone.code, other.backbone.code, rng)
            child = self._checked(*widths, code_of(genome))
            if child is not None and child not in (parent, other):
                return Mutation(child, (what,), block_map(genome, parent, child))
        return None

    # ------------------------------------------------------------------------------------------------------------------
    # Genes (see genes.py): the indices of the neck's and the head's width and of the base, then the characters of the code.
    # A code's state is (channels, base, stage, doublings, whether the stage has a block).

    @property
    def width(self) -> int:
        return 3 + self.rules.max_blocks + STAGES - 1

    @property
    def symbols(self) -> int:
        return max(len(SYMBOLS), *map(len, self._choices))

    def encode(self, blueprint: Blueprint) -> np.ndarray:
        base, channels, hidden = (known.index(width) for width, known in zip(_widths(blueprint), self._choices, strict=True))
        code = [SYMBOLS.index(character) for character in blueprint.backbone.code]
        return np.array([channels, hidden, base, *code, *[END] * (self.width - 3 - len(code))], np.uint8)

    def decode(self, genes: np.ndarray) -> Blueprint:
        widths = [genes[2], genes[0], genes[1]]
        if any(gene >= len(known) for gene, known in zip(widths, self._choices, strict=True)) or any(
            gene >= len(SYMBOLS) and gene != END for gene in genes[3:]
        ):
            raise BlueprintError("a gene is none of the space's symbols")
        code = "".join(SYMBOLS[gene] for gene in genes[3:] if gene != END)
        return self._replaced(*(known[gene] for gene, known in zip(widths, self._choices, strict=True)), code)

    def transitions(self) -> Iterator[Transition]:
        bases, channels, hidden = self._choices
        first = "-".join("1" * STAGES)
        for c, wide in enumerate(channels):
            before = self._with(bases[0], wide, hidden[0], first)
            yield Transition(0, c, self._number[c], None, before)
            for h, deep in enumerate(hidden):
                yield Transition(self._number[c], h, self._number[c, "hidden"], before, self._with(bases[0], wide, deep, first))
            for b, base in enumerate(bases):
                yield Transition(self._number[c, "hidden"], b, self._number[c, b], before, self._with(base, wide, hidden[0], first))
                yield from self._code_transitions(c, b)

    def accepting(self, state: int) -> bool:
        return state in self._last

    def _code_transitions(self, c: int, b: int) -> Iterator[Transition]:
        """Every state stands for a code whose later stages have one `1` each, which costs nothing when it is read."""
        bases, channels, hidden = self._choices

        def stand(*stages: str) -> Blueprint:
            return self._with(bases[b], channels[c], hidden[0], "-".join([*stages, *"1" * STAGES][:STAGES]))

        def read(start: int, before: Blueprint, end: tuple[int, int], *stages: str) -> Iterator[Transition]:
            """A `1` or a `2` behind `stages`, the last of which it belongs to; end: stage, doublings before it."""
            for symbol, more in ((ONE, 0), (TWO, 1)):
                if end[1] + more <= DOUBLINGS:
                    after = stand(*stages[:-1], stages[-1] + SYMBOLS[symbol])
                    yield Transition(start, symbol, self._number[c, b, end[0], end[1] + more, True], before, after)

        yield from read(self._number[c, b], stand(), (0, 0), "")
        for stage in range(STAGES):
            for doublings in range(DOUBLINGS + 1):
                here, stages = self._number[c, b, stage, doublings, True], ["2" * doublings or "1", *"1" * stage]
                yield from read(here, stand(*stages), (stage, doublings), *stages)
                if stage + 1 < STAGES:
                    boundary = self._number[c, b, stage, doublings, False]
                    yield Transition(here, BOUNDARY, boundary, None, None)
                    yield from read(boundary, stand(*stages), (stage + 1, doublings), *stages, "")

    @cached_property
    def _number(self) -> dict[tuple | int, int]:
        """States by what they mean; 0 is the start."""
        bases, channels, _ = self._choices
        meanings: list[tuple | int] = []
        for c in range(len(channels)):
            meanings += [c, (c, "hidden"), *((c, b) for b in range(len(bases)))]
            meanings += [
                (c, b, stage, doublings, filled)
                for b in range(len(bases))
                for stage in range(STAGES)
                for doublings in range(DOUBLINGS + 1)
                for filled in (True, False)
            ]
        return {meaning: number for number, meaning in enumerate(meanings, 1)}

    @cached_property
    def _last(self) -> frozenset[int]:
        end = (STAGES - 1, DOUBLINGS, True)
        return frozenset(number for meaning, number in self._number.items() if isinstance(meaning, tuple) and meaning[2:] == end)

    # ------------------------------------------------------------------------------------------------------------------

    @property
    def _choices(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        return self.rules.bases, self.rules.channels, self.rules.hidden

    def _checked(self, base: int, channels: int, hidden: int, code: str) -> Blueprint | None:
        blueprint = self._with(base, channels, hidden, code)
        try:
            if blueprint is not None:
                self.validate(blueprint)
        except InputError:
            return None
        return blueprint

    def _with(self, base: int, channels: int, hidden: int, code: str) -> Blueprint | None:
        try:
            return self._replaced(base, channels, hidden, code)
        except BlueprintError:
            return None

    def _replaced(self, base: int, channels: int, hidden: int, code: str) -> Blueprint:
        ancestor = self.ancestor
        return ancestor.replace(
            backbone=dataclasses.replace(ancestor.backbone, base=base, code=code),
            neck=dataclasses.replace(ancestor.neck, channels=channels),
            head=dataclasses.replace(ancestor.head, hidden=hidden),
        )


def _widths(blueprint: Blueprint) -> tuple[int, int, int]:
    return blueprint.backbone.base, blueprint.neck.channels, blueprint.head.hidden


def _neighbour(width: int, known: tuple[int, ...], rng: np.random.Generator) -> int:
    at = sorted(known).index(width) + (1 if rng.random() < 0.5 else -1)
    return sorted(known)[min(max(at, 0), len(known) - 1)]


def _edit(genome: Genome, rng: np.random.Generator) -> tuple[Genome, str]:
    kind = rng.integers(3)
    if kind == 0:
        return _insert(genome, rng)
    if kind == 1:
        return _remove(genome, rng)
    return swap_boundary(genome, rng, max_step=1) if rng.random() < 0.5 else swap_doubling(genome, rng)


def _insert(genome: Genome, rng: np.random.Generator) -> tuple[Genome, str]:
    """A new `1` at any place."""
    stage = int(rng.integers(len(genome)))
    at = int(rng.integers(len(genome[stage]) + 1))
    grown = [*genome[stage][:at], ("1", None), *genome[stage][at:]]
    return [*genome[:stage], grown, *genome[stage + 1 :]], f"insert into stage {stage + 1} as block {at + 1}"


def _remove(genome: Genome, rng: np.random.Generator) -> tuple[Genome, str]:
    """Without one `1` that is not alone in its stage."""
    places = [(s, i) for s, stage in enumerate(genome) for i, (digit, _) in enumerate(stage) if digit == "1" and len(stage) > 1]
    if not places:
        return genome, ""
    stage, at = places[rng.integers(len(places))]
    left = [*genome[stage][:at], *genome[stage][at + 1 :]]
    return [*genome[:stage], left, *genome[stage + 1 :]], f"remove block {at + 1} of stage {stage + 1}"
