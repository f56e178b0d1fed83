"""Blueprint: the frozen, hashable description of one whole detector, with a JSON form. Imports no torch.

The parts are plain dataclasses; `Part` entries in `PARTS` say how each is written in the one-line form (see `text.py`).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fastnas.blueprint.check import integer
from fastnas.blueprint.code import BlueprintError
from fastnas.blueprint.parts import OPTIONAL, PARTS, SLOTS, Backbone, C4Head, Head, Neck, Proposer
from fastnas.blueprint.show import show


@dataclass(frozen=True)
class Blueprint:
    """One whole detector: two-stage (backbone, neck, rpn, head) or one-stage (no rpn).

    input: (height, width) in pixels; classes: number of foreground classes (each head adds its own background).
    """

    input: tuple[int, int]
    backbone: Backbone
    neck: Neck
    rpn: Proposer | None  # None: a one-stage detector
    head: Head
    classes: int

    def __post_init__(self):
        for side in self.input:
            integer("input side", side, 32, 8192)
        integer("classes", self.classes, 1, 10000)
        levels = self.neck.levels_over(self.backbone.maps)
        if isinstance(self.head, C4Head) and not (len(levels) == 1 and 2 <= levels[0] < self.backbone.maps[-1]):
            wanted = f"the neck none:LEVEL, from 2 to below the backbone's last level {self.backbone.maps[-1]}"
            raise BlueprintError(f"the head {part_name(self.head)} runs what the backbone has behind one level: it takes {wanted}")
        if self.head.takes_proposals and self.rpn is None:
            raise BlueprintError(f"the head {part_name(self.head)} works on proposals, but there is no rpn (add {example('rpn')})")
        if self.rpn is not None and not self.head.takes_proposals:
            raise BlueprintError(f"the head {part_name(self.head)} takes no proposals: leave {part_name(self.rpn)} out")

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """The canonical one-line form; `fastnas.blueprint.parse` reads it back."""
        parts = [part_text(part) for slot in SLOTS if (part := getattr(self, slot)) is not None]
        return "/".join([f"{self.input[0]}x{self.input[1]}", *parts, f"classes:{self.classes}"])

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; `from_dict` reads it back."""
        return {"input": list(self.input), **{slot: _part_to_dict(getattr(self, slot)) for slot in SLOTS}, "classes": self.classes}

    @staticmethod
    def from_dict(data: Any) -> "Blueprint":
        """Reads the JSON form. Raises BlueprintError naming the key that is missing, unknown or of the wrong type."""
        if not isinstance(data, dict):
            raise BlueprintError(f"a blueprint in JSON is an object, not {type(data).__name__}")
        wanted = ("input", *SLOTS, "classes")
        for key in data:
            if key not in wanted:
                raise BlueprintError(f"unknown key {show(key)} in the blueprint (known: {', '.join(wanted)})")
        for key in wanted:
            if key not in data and key not in OPTIONAL:
                raise BlueprintError(f"the blueprint has no {key!r}")
        size = data["input"]
        if not isinstance(size, list | tuple) or len(size) != 2:
            raise BlueprintError(f"input must be [height, width], not {show(size)}")
        return Blueprint(tuple(size), **{slot: _part_from_dict(slot, data.get(slot)) for slot in SLOTS}, classes=data["classes"])

    def replace(self, **changes) -> "Blueprint":
        return dataclasses.replace(self, **changes)


def part_name(part) -> str:
    """The name of a part in text and JSON, e.g. `bottleneck` or `fpn`."""
    for name, entry in PARTS.items():
        if type(part) is entry.cls and all(getattr(part, field) == value for field, value in entry.fixed):
            return name
    raise TypeError(f"{type(part).__name__} is not registered in PARTS")


def example(slot: str) -> str:
    """What may be written for a slot in the one-line form."""
    return " or ".join(f"{name}:..." for name, part in PARTS.items() if part.slot == slot)


def part_text(part) -> str:
    name = part_name(part)
    main = PARTS[name].main
    options = [
        f",{field.name}={value}"
        for field in dataclasses.fields(part)
        if field.name in _free_fields(part) and field.name != main and (value := getattr(part, field.name)) != field.default
    ]
    return f"{name}:{getattr(part, main)}{''.join(options)}"


def _free_fields(part) -> dict[str, Any]:
    fixed = {field for field, _ in PARTS[part_name(part)].fixed}
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.name not in fixed}


def _part_to_dict(part) -> dict[str, Any] | None:
    return None if part is None else {"kind": part_name(part), **_free_fields(part)}


def _part_from_dict(slot: str, data: Any):
    if data is None and slot in OPTIONAL:
        return None
    if not isinstance(data, dict) or "kind" not in data:
        raise BlueprintError(f"{slot} must be an object with a 'kind'")
    kind = data["kind"]
    known = [name for name, part in PARTS.items() if part.slot == slot]
    if kind not in known:
        raise BlueprintError(f"unknown {slot} kind {show(kind)} (known: {', '.join(known)})")
    part = PARTS[kind]
    fields = {field.name for field in dataclasses.fields(part.cls)} - {field for field, _ in part.fixed}
    for key in data:
        if key != "kind" and key not in fields:
            raise BlueprintError(f"unknown key {show(key)} in {slot} (known: {', '.join(sorted(fields))})")
    if part.main not in data:
        raise BlueprintError(f"{slot} has no {part.main!r}")
    return part.cls(**dict(part.fixed), **{key: value for key, value in data.items() if key != "kind"})
