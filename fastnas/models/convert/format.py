"""What a format says of itself, and what several formats need to say it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fastnas.blueprint import Blueprint, Network
from fastnas.blueprint.wiring import Block

Source = Mapping[str, Tensor]  # tensors of a checkpoint by their names there


@dataclass(frozen=True)
class Format:
    """How one program names the tensors of its detectors or backbones.

    marks: tensors that every checkpoint of this format has and no other format has all of.
    names: where it keeps tensor `key` of a block: one name, several where versions differ, none where it has no such block.
    blueprint: what a checkpoint tells of the detector; raises InputError that says what it does not tell.
    eps: of its batch norms, None: as ours.
    """

    name: str
    marks: tuple[str, ...]
    names: Callable[[Network, Block, str], list[str]]
    blueprint: Callable[[Source], Blueprint]
    eps: Callable[[Source], float | None] = lambda source: None


def split(key: str) -> tuple[str, str]:
    """`conv1.weight` -> (`conv1`, `weight`)."""
    layer, _, leaf = key.rpartition(".")
    return layer, leaf


def place(block: Block) -> tuple[int, int] | None:
    """Stage and index of a backbone block, both from 0: `backbone.stage3.block1` -> (2, 0)."""
    found = re.fullmatch(r"backbone\.stage(\d+)\.block(\d+)", block.name)
    return (int(found[1]) - 1, int(found[2]) - 1) if found else None


def count(source: Source, pattern: str) -> int:
    """How many numbers stand at {} in the names of a checkpoint: count(source, "layer1.{}.conv1.weight")."""
    head, tail = pattern.split("{}")
    number = 0
    while f"{head}{number}{tail}" in source:
        number += 1
    return number
