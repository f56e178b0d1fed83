"""SP-NAS, parallel level (Jiang et al., CVPR 2020, section 3): how many copies of each stage run beside a backbone.

The backbone is that of the serial level. The authors' first release (huawei-noah/vega 0.9.3) draws every code anew and starts it
from the serial level's weights; here most children differ from a parent on the front in a copy or two, and start from its weights.
New connectors feed back nothing, so a child computes at first what its parent did, unless a stage loses copies, a tied stage that
has copies gets more (they share its connector), or the copies of a stage get another input from those before it.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fastnas.blueprint import Blueprint, BlueprintError, SerialBackbone, expand
from fastnas.blueprint.code import positions
from fastnas.blueprint.parts.parallel import copies_of
from fastnas.blueprint.wiring import stage_block_name
from fastnas.errors import InputError
from fastnas.spaces.genes import Transition
from fastnas.spaces.rules import OPERATIONS, PROBABILITY, STRICT, check
from fastnas.spaces.space import Mutation, same_blocks

MOST_COPIES = 9  # of a stage: a digit each in the code
TRIES = 200
Counts = tuple[int, ...]  # copies of every stage that the network has


@dataclass(frozen=True)
class ParallelRules:
    """How many copies a stage may have, and how mutations move. p_draw 1 with p_cross 0 draws codes as the first release does."""

    prior: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)  # of a stage having 0, 1, ... copies; there are no more than it names
    tied: bool = True  # copies are further uses of the stage's blocks; else each has weights of its own
    p_draw: float = 0.2  # of a child with a new draw for every stage
    p_cross: float = 0.2
    operations: int = 1  # steps of the other children: a stage gets a copy more or one fewer

    __pydantic_config__ = STRICT

    def __post_init__(self):
        check(self, p_draw=PROBABILITY, p_cross=PROBABILITY, operations=OPERATIONS)
        if not 2 <= len(self.prior) <= MOST_COPIES + 1 or min(self.prior) < 0 or not abs(sum(self.prior) - 1) < 1e-9:
            raise InputError(f"rules.prior must be 2 to {MOST_COPIES + 1} probabilities that add up to 1")


@dataclass(frozen=True)
class ParallelSpace:
    """All parallel forms of the ancestor's backbone that the rules allow; everything else is the ancestor's."""

    ancestor: Blueprint
    rules: ParallelRules = field(default_factory=ParallelRules)
    name: str = "spnas"

    def __post_init__(self):
        if not isinstance(self.ancestor.backbone, SerialBackbone):
            raise InputError(f"{self.ancestor.text} has no backbone with a code")
        if not self._stages:
            raise InputError(f"the neck of {self.ancestor.text} takes no stage of the backbone")
        self.validate(self.ancestor)

    @property
    def p_cross(self) -> float:
        return self.rules.p_cross

    def validate(self, blueprint: Blueprint) -> None:
        if not isinstance(blueprint.backbone, SerialBackbone) or _serial(blueprint) != _serial(self.ancestor):
            raise InputError(f"{blueprint.text} differs from the space's ancestor in more than the copies of stages")
        parallel, most = blueprint.backbone.parallel, self.symbols - 1
        counts = copies_of(blueprint.backbone.code, parallel)
        for stage, copies in enumerate(counts):
            if copies > most:
                raise InputError(f"{parallel} has {copies} copies of stage {stage + 1}, the space allows 0 to {most}")
            if copies and stage not in self._stages:
                raise InputError(f"{parallel} has copies of stage {stage + 1}, which the neck does not take")
        if any(counts) and blueprint.backbone.tied != self._tied:
            raise InputError(f"{blueprint.text} has tied={blueprint.backbone.tied}, rules.tied says {self._tied}")

    def sample(self, rng: np.random.Generator) -> Blueprint:
        """Independent draws from the prior."""
        return self._with(self._drawn(rng))

    def mutate(self, parent: Blueprint, rng: np.random.Generator) -> Mutation | None:
        before = self._counts(parent)
        for _ in range(TRIES):
            counts = self._drawn(rng) if rng.random() < self.rules.p_draw else self._stepped(before, rng)
            if counts != before:
                return self._child(parent, counts)
        return None

    def cross(self, parent: Blueprint, other: Blueprint, rng: np.random.Generator) -> Mutation | None:
        """The copies of each stage from either, with equal probability."""
        ours, theirs = self._counts(parent), self._counts(other)
        for _ in range(TRIES):
            picks = rng.random(self.width) < 0.5
            counts = tuple(b if pick else a for a, b, pick in zip(ours, theirs, picks, strict=True))
            if counts not in (ours, theirs):
                return self._child(parent, counts)
        return None

    # ------------------------------------------------------------------------------------------------------------------
    # Genes (see genes.py): the copies of every stage that the network has. Where a copy reads depends on the stages around it, the
    # shape of what it reads does not, so stages cost what they cost alone, and a state is how many of them have been read.

    @property
    def width(self) -> int:
        return len(self._stages)

    @property
    def symbols(self) -> int:
        return len(self.rules.prior)

    def encode(self, blueprint: Blueprint) -> np.ndarray:
        return np.array(self._counts(blueprint), np.uint8)

    def decode(self, genes: np.ndarray) -> Blueprint:
        if any(gene >= self.symbols for gene in genes):
            raise BlueprintError(f"a gene is none of 0 to {self.symbols - 1} copies")
        return self._with(tuple(map(int, genes)))

    def transitions(self) -> Iterator[Transition]:
        alone = self._with((0,) * self.width)
        for index in range(self.width):
            for copies in range(self.symbols):
                after = self._with((0,) * index + (copies,) + (0,) * (self.width - index - 1))
                yield Transition(index, copies, index + 1, alone if index else None, after)

    def accepting(self, state: int) -> bool:
        return state == self.width

    # ------------------------------------------------------------------------------------------------------------------

    @cached_property
    def _stages(self) -> tuple[int, ...]:
        """The stages, from 0, that the network has: the neck need not take the last ones."""
        names = {block.name for block in expand(self.ancestor).blocks}
        return tuple(stage for stage in range(self.ancestor.backbone.stages) if stage_block_name(stage, 0) in names)

    @property
    def _tied(self) -> str:
        return "yes" if self.rules.tied else "no"

    def _drawn(self, rng: np.random.Generator) -> Counts:
        return tuple(map(int, rng.choice(self.symbols, self.width, p=self.rules.prior)))

    def _stepped(self, counts: Counts, rng: np.random.Generator) -> Counts:
        stepped = list(counts)
        for _ in range(self.rules.operations):
            index, step = rng.integers(self.width), 1 if rng.random() < 0.5 else -1
            stepped[index] = min(max(stepped[index] + step, 0), self.symbols - 1)
        return tuple(stepped)

    def _counts(self, blueprint: Blueprint) -> Counts:
        counts = copies_of(blueprint.backbone.code, blueprint.backbone.parallel)
        return tuple(counts[stage] for stage in self._stages)

    def _with(self, counts: Counts) -> Blueprint:
        copies = dict(zip(self._stages, counts, strict=True))
        backbone = self.ancestor.backbone
        parallel = "-".join(str(copies.get(stage, 0)) for stage in range(backbone.stages))
        return self.ancestor.replace(backbone=dataclasses.replace(backbone, parallel=parallel, tied=self._tied))

    def _child(self, parent: Blueprint, counts: Counts) -> Mutation:
        child, before = self._with(counts), self._counts(parent)
        steps = (f"stage {s + 1} copies {a} -> {b}" for s, a, b in zip(self._stages, before, counts, strict=True) if a != b)
        return Mutation(child, tuple(steps), _block_map(parent, child))


def _serial(blueprint: Blueprint) -> Blueprint:
    """Without copies."""
    return blueprint.replace(backbone=dataclasses.replace(blueprint.backbone, parallel=""))


def _block_map(parent: Blueprint, child: Blueprint) -> dict[str, str]:
    """Blocks of the same name; a new copy with weights of its own starts from the backbone's own stage."""
    blocks, backbone = same_blocks(parent, child), child.backbone
    if backbone.tied == "no":
        copies = copies_of(backbone.code, backbone.parallel)
        for at in positions(backbone.code):
            for copy in range(1, copies[at.stage] + 1):
                blocks.setdefault(stage_block_name(at.stage, at.index, copy), stage_block_name(at.stage, at.index))
    return blocks
