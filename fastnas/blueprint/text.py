"""The one-line form of a blueprint.

    240x320/basic:11-21-21-21,base=32,stem=3x3/fpn:64/rpn:200,scale=4/rcnn:256/classes:3
    512x512/efficientnet:b0/bifpn:64/effdet:3/classes:90

Components are separated by `/`: the input as HEIGHTxWIDTH, then `name:main,option=value,...` for backbone, neck, rpn (two-stage
detectors only) and head, then the number of foreground classes. Options at their default are left out in the canonical form
(`Blueprint.text`).
"""

import dataclasses
import re

from fastnas.blueprint.blueprint import Blueprint, example
from fastnas.blueprint.code import BlueprintError
from fastnas.blueprint.parts import OPTIONAL, PARTS, SLOTS
from fastnas.blueprint.show import show


def parse(text: str) -> Blueprint:
    """Reads the one-line form. Raises BlueprintError pointing at the offending character."""
    found: dict[str, object] = dict.fromkeys(OPTIONAL)
    offset = 0
    for component in text.split("/"):
        slot, value = _component(component, text, offset)
        if found.get(slot) is not None:
            raise BlueprintError(f"a second {slot}", text, offset)
        found[slot] = value
        offset += len(component) + 1
    for slot in ("input", *SLOTS, "classes"):
        if slot not in found:
            raise BlueprintError(f"no {slot} in the blueprint ({_example(slot)})", text)
    return _at({}, text, lambda: Blueprint(**found))


def parse_part(slot: str, text: str):
    """Reads one part as it is written in the one-line form, e.g. `fpn:64` for the neck; `none` where the slot may be left out."""
    if text == "none" and slot in OPTIONAL:
        return None
    found, part = _component(text, text, 0)
    if found != slot:
        raise BlueprintError(f"{show(text)} is no {slot} ({example(slot)})")
    return part


def parse_input(text: str) -> tuple[int, int]:
    """Reads HEIGHTxWIDTH."""
    if not re.fullmatch(r"\d+x\d+", text, re.ASCII):
        raise BlueprintError(f"{show(text)} is no input size (HEIGHTxWIDTH, e.g. 240x320)")
    return _component(text, text, 0)[1]


def _component(component: str, text: str, offset: int) -> tuple[str, object]:
    if size := re.fullmatch(r"(\d+)x(\d+)", component, re.ASCII):
        return "input", (_whole(size[1], text, offset), _whole(size[2], text, offset + size.start(2)))
    name, colon, rest = component.partition(":")
    if name != "classes" and name not in PARTS:
        known = ", ".join([*PARTS, "classes"])
        raise BlueprintError(f"unknown component {show(name)} (known: HEIGHTxWIDTH, {known})", text, offset)
    if not colon:
        raise BlueprintError(f"{name!r} needs a value ({name}:...)", text, offset + len(name))
    offset += len(name) + 1
    if name == "classes":
        return "classes", _whole(rest, text, offset)
    part = PARTS[name]
    types = {field.name: field.type for field in dataclasses.fields(part.cls)}
    values: dict[str, object] = dict(part.fixed)
    starts = {}
    for index, item in enumerate(rest.split(",")):
        key, equals, value = (part.main, "=", item) if index == 0 else item.partition("=")
        start = offset if index == 0 else offset + len(key) + 1
        if not equals or key not in types or key in dict(part.fixed):
            options = ", ".join(field for field in types if field != part.main and field not in dict(part.fixed))
            raise BlueprintError(f"unknown option {show(key)} of {name} (known: {options or 'none'})", text, offset)
        if key in values:
            raise BlueprintError(f"{key!r} of {name} is given twice", text, offset)
        values[key] = _whole(value, text, start) if types[key] is int else value
        starts[key] = start
        offset += len(item) + 1
    return part.slot, _at(starts, text, lambda: part.cls(**values), part.main)


def _at(starts: dict[str, int], text: str, make, main: str = ""):
    """Runs `make`; an error of the part it makes is moved to its place in the whole text."""
    try:
        return make()
    except BlueprintError as error:
        named = [start for key, start in starts.items() if key in error.reason.split()]  # the reason names the field
        if error.position is not None:
            raise BlueprintError(error.reason, text, (named[0] if named else starts[main]) + error.position) from None
        raise BlueprintError(error.reason, text, named[0] if named else None) from None


def _whole(digits: str, text: str, offset: int) -> int:
    if not digits:
        raise BlueprintError("a number is missing", text, min(offset, len(text) - 1) if text else None)
    for index, character in enumerate(digits):
        if character not in "0123456789":
            raise BlueprintError(f"{character!r} is no digit", text, offset + index)
    if len(digits) > 9:
        raise BlueprintError("number too large", text, offset)
    return int(digits)


def _example(slot: str) -> str:
    if slot == "input":
        return "e.g. 240x320/..."
    if slot == "classes":
        return "e.g. .../classes:3"
    return f"one of {example(slot)}"
