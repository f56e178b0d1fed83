"""The code of a serial backbone, e.g. `111-2111-211111-211` (= ResNet-50 with bottleneck blocks).

SP-NAS (Jiang et al., CVPR 2020), grammar of its first release: one digit per block, `1` keeps the channels, `2` doubles them;
`-` starts a stage, whose first block has stride 2 (stage 1 keeps the stem's stride of 4). Doubling channels and halving the
resolution are therefore independent of each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fastnas.errors import InputError

MAX_STAGES = 7
MAX_BLOCKS = 400


class BlueprintError(InputError):
    """A blueprint that cannot be read. `position` is the 0-based index of the offending character, where there is one."""

    def __init__(self, reason: str, text: str = "", position: int | None = None):
        self.reason, self.text, self.position = reason, text, position
        if position is None:
            super().__init__(f"{reason}: {_shown(text)}" if text else reason)
        else:
            marked = f"{_shown(text[:position][-80:])}»{_shown(text[position : position + 1])}«{_shown(text[position + 1 :])}"
            super().__init__(f"{reason} at character {position + 1}: {marked}")


def _shown(text: str) -> str:
    """`text` on one line of bearable length: it may come from anywhere."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 120 else f"{text[:117]}..."


@dataclass(frozen=True)
class BlockPosition:
    """One block of a serial backbone: where it stands and what it does to its input."""

    stage: int  # 0-based
    index: int  # 0-based inside the stage
    stride: int  # 1 or 2
    doublings: int  # number of `2`s up to and including this block


def validate_code(code: str) -> str:
    """Returns `code` unchanged, or raises BlueprintError pointing at the first character that breaks the grammar."""
    if not code:
        raise BlueprintError("empty code: write one digit per block and '-' between stages, e.g. 11-21-21-21")
    previous = "-"
    for position, character in enumerate(code):
        if character not in "12-":
            raise BlueprintError(f"unknown character {character!r} in the code (use 1, 2 and -)", code, position)
        if character == "-" and previous == "-":
            raise BlueprintError("empty stage (a stage needs at least one block)", code, position)
        previous = character
    if previous == "-":
        raise BlueprintError("empty stage (a stage needs at least one block)", code, len(code) - 1)
    stages = code.split("-")
    if len(stages) > MAX_STAGES:
        end = sum(len(stage) + 1 for stage in stages[:MAX_STAGES]) - 1
        raise BlueprintError(f"{len(stages)} stages, at most {MAX_STAGES} are possible", code, end)
    if sum(map(len, stages)) > MAX_BLOCKS:
        raise BlueprintError(f"{sum(map(len, stages))} blocks in the code, at most {MAX_BLOCKS} are possible")
    return code


def positions(code: str) -> Iterator[BlockPosition]:
    """Yields the blocks of a valid code in order of execution."""
    doublings = 0
    for stage, digits in enumerate(code.split("-")):
        for index, digit in enumerate(digits):
            doublings += digit == "2"
            yield BlockPosition(stage, index, 2 if stage and not index else 1, doublings)
