"""SP-NAS, serial level (Jiang et al., "SP-NAS: Serial-to-Parallel Backbone Search for Object Detection", CVPR 2020, section 3).

A backbone grows by morphisms of its code: *expand* inserts a block that keeps the shape, *swap* moves a down-sampling (`-`) or a
channel doubling (`2`) past neighbouring blocks, *add stage* appends a stage of one block. Each operation works on a genome, a
list of stages of (digit, origin) pairs, so the origin of every block in the parent is carried along instead of guessed.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fastnas.blueprint import Blueprint, SerialBackbone
from fastnas.blueprint.code import MAX_BLOCKS, MAX_STAGES, BlueprintError, positions
from fastnas.blueprint.show import show
from fastnas.blueprint.wiring import stage_block_name
from fastnas.errors import InputError
from fastnas.spaces.genes import END, Transition
from fastnas.spaces.rules import OPERATIONS, PROBABILITY, STRICT, check
from fastnas.spaces.space import Mutation, same_blocks

SYMBOLS = "12-"  # of a code, in the order of their genes
_GENES = bytes.maketrans(SYMBOLS.encode(), bytes(range(len(SYMBOLS))))
Gene = tuple[str, str | None]  # digit, name of the parent's block (None: new)
Genome = list[list[Gene]]
TRIES = 200


@dataclass(frozen=True)
class SerialRules:
    """How the serial level mutates and how far it may go. The probabilities are those of *doing* the operation."""

    p_expand: float = 0.5
    p_swap: float = 0.4
    p_add_stage: float = 0.1
    p_cross: float = 0.0  # of crossing two parents instead, which is not in the paper
    operations: int = 2  # operations drawn for one child
    swap: tuple[str, ...] = ("boundary", "doubling")  # what a swap may move; SP-NAS's released code moves boundaries only
    max_step: int = 3  # blocks that a boundary is moved past at most
    min_blocks: int = 1
    max_blocks: int = 60
    min_stages: int = 1
    max_stages: int = 6

    __pydantic_config__ = STRICT

    def __post_init__(self):
        check(self, p_expand=PROBABILITY, p_swap=PROBABILITY, p_add_stage=PROBABILITY, p_cross=PROBABILITY, operations=OPERATIONS)
        check(self, max_step=(1, 100), max_blocks=(1, MAX_BLOCKS), max_stages=(1, MAX_STAGES))
        check(self, min_blocks=(1, self.max_blocks), min_stages=(1, self.max_stages))
        total = self.p_expand + self.p_swap + self.p_add_stage
        if not 0 < total <= 1 + 1e-9:
            raise InputError(f"rules: p_expand, p_swap and p_add_stage must add up to more than 0 and to 1 at most, not {total:g}")
        if not self.swap or len(self.swap) > 10 or set(self.swap) - {"boundary", "doubling"}:
            raise InputError(f"rules.swap must name boundary, doubling or both, not {show(list(self.swap))}")


# The rates of the first released code: three operations, each drawn uniformly and then skipped with some probability.
VEGA_V1 = SerialRules(p_expand=0.233, p_swap=0.333, p_add_stage=0.317, operations=3, swap=("boundary",), max_stages=6)


@dataclass(frozen=True)
class SerialSpace:
    """All backbones that the rules can grow from `ancestor`; neck, rpn, head and input stay as they are."""

    ancestor: Blueprint
    rules: SerialRules = field(default_factory=SerialRules)
    name: str = "spnas"

    def __post_init__(self):
        self.validate(self.ancestor)

    @property
    def p_cross(self) -> float:
        return self.rules.p_cross

    def validate(self, blueprint: Blueprint) -> None:
        check_serial(blueprint)
        code, rules = blueprint.backbone.code, self.rules
        blocks, stages = len(code) - code.count("-"), blueprint.backbone.stages
        check_size(code, "blocks", blocks, rules.min_blocks, rules.max_blocks)
        check_size(code, "stages", stages, rules.min_stages, rules.max_stages)

    def sample(self, rng: np.random.Generator) -> Blueprint:
        """The ancestor after 0 to 12 mutations."""
        blueprint = self.ancestor
        for _ in range(rng.integers(13)):
            mutation = self.mutate(blueprint, rng)
            blueprint = mutation.blueprint if mutation else blueprint
        return blueprint

    def mutate(self, parent: Blueprint, rng: np.random.Generator) -> Mutation | None:
        """Draws `operations` operations until the child differs from the parent and lies in the space."""
        for _ in range(TRIES):
            genome, done = genome_of(parent.backbone.code), []
            for _ in range(self.rules.operations):
                genome, what = self._draw(genome, rng)
                done += [what] if what else []
            code = code_of(genome)
            if code == parent.backbone.code:
                continue
            try:
                child = parent.replace(backbone=_with_code(parent.backbone, code))
                self.validate(child)
            except (BlueprintError, InputError):
                continue  # too many blocks, stages or channels
            return Mutation(child, tuple(done), block_map(genome, parent, child))
        return None

    def cross(self, parent: Blueprint, other: Blueprint, rng: np.random.Generator) -> Mutation | None:
        """The first stages of the parent and the last ones of the other."""
        for _ in range(TRIES):
            genome, what = crossed(parent.backbone.code, other.backbone.code, rng)
            if code_of(genome) in (parent.backbone.code, other.backbone.code):
                continue
            try:
                child = parent.replace(backbone=_with_code(parent.backbone, code_of(genome)))
                self.validate(child)
            except (BlueprintError, InputError):
                continue
            return Mutation(child, (what,), block_map(genome, parent, child))
        return None

    # ------------------------------------------------------------------------------------------------------------------
    # Genes (see genes.py): the characters of the code. A state is (stage, doublings, whether its stage has no block yet).

    symbols = len(SYMBOLS)

    @property
    def width(self) -> int:
        return self.rules.max_blocks + self.rules.max_stages - 1

    def encode(self, blueprint: Blueprint) -> np.ndarray:
        return np.frombuffer(blueprint.backbone.code.encode().translate(_GENES).ljust(self.width, b"\xff"), np.uint8)

    def decode(self, genes: np.ndarray) -> Blueprint:
        code = "".join(SYMBOLS[gene] for gene in genes[: self.width] if gene != END)
        return self.ancestor.replace(backbone=_with_code(self.ancestor.backbone, code))

    def transitions(self) -> Iterator[Transition]:
        for stage in range(self.rules.max_stages):
            for doublings in range(self.rules.max_blocks + 1):
                before = self._standing_for(stage, doublings)
                yield from self._from_state(stage, doublings, before)

    def accepting(self, state: int) -> bool:
        return state % 2 == 1

    def _from_state(self, stage: int, doublings: int, before: Blueprint | None) -> Iterator[Transition]:
        """Blocks added to this stage, and the first block of the next one, which also pays for what a new level brings."""
        start = self._state(stage, doublings)
        if stage == 0 and doublings == 0:
            for symbol, more in (("1", 0), ("2", 1)):
                yield Transition(0, SYMBOLS.index(symbol), self._state(0, more), None, self._with(symbol))
        if before is None:
            return
        for symbol, more in (("1", 0), ("2", 1)):
            end = self._state(stage, doublings + more)
            if (after := self._with(f"{before.backbone.code}{symbol}")) is not None:
                yield Transition(start, SYMBOLS.index(symbol), end, before, after)
        if stage + 1 == self.rules.max_stages:
            return
        boundary = start + 1
        yield Transition(start, SYMBOLS.index("-"), boundary, None, None)
        for symbol, more in (("1", 0), ("2", 1)):
            end = self._state(stage + 1, doublings + more)
            if (after := self._with(f"{before.backbone.code}-{symbol}")) is not None:
                yield Transition(boundary, SYMBOLS.index(symbol), end, before, after)

    def _state(self, stage: int, doublings: int) -> int:
        """Odd: a stage that has a block. The even number after it: just behind its boundary. 0: the start."""
        return 1 + 2 * (stage * (self.rules.max_blocks + 1) + doublings)

    def _standing_for(self, stage: int, doublings: int) -> Blueprint | None:
        """A blueprint in this state; None where there is none (too many channels)."""
        return self._with("2" * doublings + "-1" * stage if doublings else "1" + "-1" * stage)

    def _with(self, code: str) -> Blueprint | None:
        try:
            return self.ancestor.replace(backbone=_with_code(self.ancestor.backbone, code))
        except BlueprintError:
            return None

    def _draw(self, genome: Genome, rng: np.random.Generator) -> tuple[Genome, str]:
        rules, draw = self.rules, rng.random()
        if draw < rules.p_expand:
            return expand(genome, rng)
        if draw < rules.p_expand + rules.p_swap:
            kind = rules.swap[rng.integers(len(rules.swap))]
            return swap_boundary(genome, rng, rules.max_step) if kind == "boundary" else swap_doubling(genome, rng)
        if draw < rules.p_expand + rules.p_swap + rules.p_add_stage and len(genome) < rules.max_stages:
            return add_stage(genome)
        return genome, ""


def check_serial(blueprint: Blueprint) -> None:
    """Raises InputError where the backbone has no code, or copies of its stages: to what grows they would not belong."""
    if not isinstance(blueprint.backbone, SerialBackbone):
        raise InputError(f"{blueprint.text} has no backbone with a code")
    if parallel := blueprint.backbone.parallel:
        raise InputError(f"{blueprint.text} has copies of stages: leave parallel={parallel} out (they have level=parallel)")


def check_size(code: str, what: str, number: int, low: int, high: int) -> None:
    """Raises InputError where a code is too short or too long for its space."""
    if not low <= number <= high:
        raise InputError(f"{code} has {number} {what}, the space allows {low} to {high}")


def genome_of(code: str) -> Genome:
    """The genome of a parent: every block is its own origin."""
    names = [stage_block_name(at.stage, at.index) for at in positions(code)]
    origins = iter(names)
    return [[(digit, next(origins)) for digit in stage] for stage in code.split("-")]


def code_of(genome: Genome) -> str:
    return "-".join("".join(digit for digit, _ in stage) for stage in genome)


def expand(genome: Genome, rng: np.random.Generator) -> tuple[Genome, str]:
    """Inserts a new `1` inside a random stage, after its first block, at a place drawn uniformly over all blocks."""
    at = int(rng.integers(sum(map(len, genome))))
    for stage, genes in enumerate(genome):
        if at < len(genes):
            grown = [*genes[: at + 1], ("1", None), *genes[at + 1 :]]
            return [*genome[:stage], grown, *genome[stage + 1 :]], f"expand stage {stage + 1} after block {at + 1}"
        at -= len(genes)
    raise AssertionError("unreachable: `at` counts the blocks of the genome")


def add_stage(genome: Genome) -> tuple[Genome, str]:
    """Appends a stage of one block that keeps the channels."""
    return [*genome, [("1", None)]], f"add stage {len(genome) + 1}"


def swap_boundary(genome: Genome, rng: np.random.Generator, max_step: int = 3) -> tuple[Genome, str]:
    """Moves the boundary between two stages, and with it a down-sampling, past one to `max_step` blocks; no stage gets empty."""
    if len(genome) < 2:
        return genome, ""
    left = int(rng.integers(len(genome) - 1))
    before, after = genome[left], genome[left + 1]
    steps = [step for step in range(-max_step, max_step + 1) if step and -len(before) < step < len(after)]
    if not steps:
        return genome, ""
    step = steps[rng.integers(len(steps))]
    joined, cut = before + after, len(before) + step
    moved = [*genome[:left], joined[:cut], joined[cut:], *genome[left + 2 :]]
    return moved, f"swap boundary {left + 1}|{left + 2} by {step:+d}"


def swap_doubling(genome: Genome, rng: np.random.Generator) -> tuple[Genome, str]:
    """Exchanges a `2` with a neighbouring `1` (also across a boundary): channels double one block earlier or later."""
    flat = [gene for stage in genome for gene in stage]
    pairs = [index for index in range(len(flat) - 1) if flat[index][0] != flat[index + 1][0]]
    if not pairs:
        return genome, ""
    at = pairs[rng.integers(len(pairs))]
    (first, first_origin), (second, second_origin) = flat[at], flat[at + 1]
    flat[at], flat[at + 1] = (second, first_origin), (first, second_origin)
    genes = iter(flat)
    return [[next(genes) for _ in stage] for stage in genome], f"swap doubling of block {at + 1} and {at + 2}"


def crossed(code: str, other: str, rng: np.random.Generator) -> tuple[Genome, str]:
    """The first stages of `code` and the last ones of `other`; a block of those has its origin at the same place of `code`."""
    ours, theirs = genome_of(code), genome_of(other)
    if len(theirs) < 2:
        return ours, ""
    cut = int(rng.integers(1, min(len(ours), len(theirs) - 1) + 1))
    known = {name for stage in ours for _, name in stage}
    tail = [[(digit, name if name in known else None) for digit, name in stage] for stage in theirs[cut:]]
    return [*ours[:cut], *tail], f"cross: stages {cut + 1} to {len(theirs)} of the other"


def origins(genome: Genome) -> dict[str, str]:
    """Backbone blocks that come from the parent, by name."""
    named = ((stage_block_name(s, i), origin) for s, genes in enumerate(genome) for i, (_, origin) in enumerate(genes))
    return {name: origin for name, origin in named if origin}


def _with_code(backbone, code: str):
    return dataclasses.replace(backbone, code=code)


def block_map(genome: Genome, parent: Blueprint, child: Blueprint) -> dict[str, str]:
    """Blocks of the child that come from the parent; everything outside the backbone's stages keeps its name."""
    kept = {name: origin for name, origin in same_blocks(parent, child).items() if not name.startswith("backbone.stage")}
    return {**kept, **origins(genome)}
