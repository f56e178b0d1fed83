"""Checks of a part's fields. Every message names the field, so that `text.parse` can point at it."""

import re
from typing import Any

from fastnas.blueprint.code import BlueprintError
from fastnas.blueprint.show import show

YES_NO = ("yes", "no")


def string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BlueprintError(f"{name} must be text, not {show(value)}")
    return value


def integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BlueprintError(f"{name} must be a whole number, not {show(value)}")
    if not low <= value <= high:
        raise BlueprintError(f"{name} is {show(value)}, it must be from {low} to {high}")


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BlueprintError(f"{name} is {show(value)}, it must be one of {', '.join(choices)}")


def level_range(name: str, value: Any, low: int, high: int) -> range:
    """The levels that `FIRST-LAST` names, e.g. 3-7; level i has stride 2^i."""
    found = re.fullmatch(r"(\d)-(\d)", string(name, value), re.ASCII)
    if not found or not low <= int(found[1]) <= int(found[2]) <= high:
        raise BlueprintError(f"{name} must be FIRST-LAST with levels from {low} to {high}, not {show(value)}")
    return range(int(found[1]), int(found[2]) + 1)
