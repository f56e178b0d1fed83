"""The parallel form of a serial backbone (SP-NAS: Jiang et al., CVPR 2020): copies of a stage beside it, outside in.

The stage before has handed on an input for every copy: what the same copy made there, else what the outermost copy there made,
else the map of the backbone itself. Each copy's output is fed back, by a connector, to the input of the copy that is next inside,
and that of the innermost copy to the backbone's own stage. Only what the backbone's own stages make goes to the neck.
Semantics of the authors' first release (huawei-noah/vega 0.9.3).
"""

from dataclasses import dataclass
from typing import Protocol

from fastnas.blueprint.code import BlueprintError
from fastnas.blueprint.operators import Layers, Operators, Pass
from fastnas.blueprint.spec import Shapes, Spec, conv_params


class Passes(Protocol):
    """Adds to a network what one stage consists of; copies count from 1, innermost first."""

    def run(self, value: str, copy: int | None) -> str:
        """One pass through a copy (None: the backbone's own stage) from its input: the value of its output."""
        ...

    def connect(self, value: str, output: str, copy: int) -> str:
        """The connector that adds the output of a copy to an input: the value of their sum."""
        ...


def copies_of(code: str, parallel: str) -> list[int]:
    """How many copies each stage of a valid code has, e.g. `0-0-2-1`. Raises BlueprintError pointing at what breaks the grammar."""
    stages = code.count("-") + 1
    if not parallel:
        return [0] * stages
    for position, character in enumerate(parallel):
        if position % 2 and character != "-":
            reason = "one digit a stage and '-' between them" if character.isdigit() else f"{character!r} is no '-'"
            raise BlueprintError(f"parallel is e.g. 0-0-2-1: {reason}", parallel, position)
        if position % 2 == 0 and character not in "0123456789":
            raise BlueprintError(f"parallel is e.g. 0-0-2-1: {character!r} is no digit", parallel, position)
    counts = parallel.split("-")
    if not counts[-1]:
        raise BlueprintError("parallel ends with '-': a digit is missing", parallel, len(parallel) - 1)
    if len(counts) != stages:
        at = min(2 * stages, len(parallel)) - 1
        raise BlueprintError(f"parallel names {len(counts)} stages, the backbone has {stages}", parallel, at)
    return [int(count) for count in counts]


def wire_stage(
    passes: Passes, value: str, branches: dict[int, str], copies: int, following: int
) -> tuple[str, dict[int, str]]:
    """One stage and its `copies`, where the next stage has `following`.

    value: the backbone's map; branches: what copies of the stage before hand on to those of this one.
    Returns the backbone's map behind the stage, and the branches for the next one.
    """
    handed, fed = {}, None
    for copy in range(copies, 0, -1):
        source = branches.get(copy) or (branches[max(branches)] if branches else value)
        fed = passes.run(passes.connect(source, fed, copy + 1) if fed else source, copy)
        if copy <= following:
            handed[copy] = fed
    return passes.run(passes.connect(value, fed, 1) if fed else value, None), handed


@dataclass(frozen=True)
class Connector(Spec):
    """Feeds a stage's output back to its input: 1x1 convolution and norm, nearest-upsampled, plus the input.

    Inputs: the map to add to (1, C, H, W) and the output of a copy. Output: (1, C, H, W).
    """

    op = "connector"
    in_channels: int  # of the stage's output
    channels: int  # of its input
    norm: str
    groups: int  # most groups of a gnws

    def params(self) -> int:
        return conv_params(self.in_channels, self.channels, 1) + 2 * self.channels

    def macs(self, inputs: Shapes) -> int:
        n, _, h, w = inputs[1]
        return conv_params(self.in_channels, self.channels, 1) * n * h * w

    def outputs(self, inputs: Shapes) -> Shapes:
        return inputs[:1]

    def operators(self, inputs: Shapes) -> Operators:
        layers, (target, output) = Layers(), inputs
        x = layers.normed(self.norm, self.channels, 1, output)
        if x[2:] != target[2:]:
            x = layers.add(Pass("upsample", target), x)
        layers.add(Pass("fuse", target), target, x)
        return layers.done()
