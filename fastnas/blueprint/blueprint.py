"""Blueprint: the frozen, hashable description of one whole detector, with a JSON form. Imports no torch.

The parts are plain dataclasses; `Part` entries in `PARTS` say how each is written in the one-line form (see `text.py`).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fastnas.blueprint.code import BlueprintError, validate_code
from fastnas.blueprint.show import show

BLOCK_KINDS = ("basic", "bottleneck", "resnext32x4d")
STEMS = ("7x7", "3x3")
NORMS = ("bn", "gn")


@dataclass(frozen=True)
class SerialBackbone:
    """A chain of residual blocks (SP-NAS serial net); levels C2, C3, ... are the outputs of its stages (stride 4, 8, ...)."""

    block: str  # basic | bottleneck | resnext32x4d
    code: str  # e.g. 11-21-21-21, see code.py
    base: int = 64  # planes before the first doubling = channels of the stem
    stem: str = "7x7"  # 7x7: 7x7/2 + max-pool/2 (ResNet); 3x3: two 3x3/2 convolutions (SP-NAS)
    norm: str = "bn"  # bn | gn

    def __post_init__(self):
        _one_of("backbone block", self.block, BLOCK_KINDS)
        validate_code(_string("backbone code", self.code))
        _integer("backbone base", self.base, 8, 512)
        _one_of("backbone stem", self.stem, STEMS)
        _one_of("backbone norm", self.norm, NORMS)
        step = 16 if self.block == "resnext32x4d" else 8
        if self.base % step:
            raise BlueprintError(f"backbone base {self.base} is not a multiple of {step} ({self.block} blocks need that)")
        if self.base << self.code.count("2") > 8192:
            raise BlueprintError(f"{self.base} channels doubled {self.code.count('2')} times exceed 8192", self.code)

    @property
    def stages(self) -> int:
        return self.code.count("-") + 1

    @property
    def expansion(self) -> int:
        return 1 if self.block == "basic" else 4


@dataclass(frozen=True)
class Fpn:
    """Feature pyramid over all backbone levels plus one max-pooled level (Lin et al., CVPR 2017)."""

    channels: int = 256

    def __post_init__(self):
        _integer("fpn channels", self.channels, 8, 2048)


@dataclass(frozen=True)
class Rpn:
    """Region proposal network (Ren et al., 2015): anchors of `scale` x stride in three aspect ratios on every level."""

    proposals: int = 1000  # regions passed to the head; exactly this many are counted and priced
    scale: int = 8  # anchor side = scale x stride
    topk: int = 1000  # best scores kept per level before suppression

    def __post_init__(self):
        _integer("rpn proposals", self.proposals, 1, 10000)
        _integer("rpn scale", self.scale, 1, 64)
        _integer("rpn topk", self.topk, 1, 10000)


@dataclass(frozen=True)
class RoiHead:
    """RoIAlign 7x7 and two fully connected layers, the Faster R-CNN head."""

    hidden: int = 1024
    detections: int = 100  # boxes kept per image

    def __post_init__(self):
        _integer("rcnn hidden", self.hidden, 8, 8192)
        _integer("rcnn detections", self.detections, 1, 1000)


@dataclass(frozen=True)
class Part:
    """How one part is written: in JSON `{"kind": name, field: value, ...}`, in text `name:main,option=value`."""

    slot: str  # field of Blueprint
    cls: type
    main: str  # the field written right after the colon
    fixed: tuple[tuple[str, str], ...] = ()  # fields that the name itself fixes


PARTS: dict[str, Part] = {
    **{kind: Part("backbone", SerialBackbone, "code", (("block", kind),)) for kind in BLOCK_KINDS},
    "fpn": Part("neck", Fpn, "channels"),
    "rpn": Part("rpn", Rpn, "proposals"),
    "rcnn": Part("head", RoiHead, "hidden"),
}
SLOTS = ("backbone", "neck", "rpn", "head")


@dataclass(frozen=True)
class Blueprint:
    """One whole detector.

    input: (height, width) in pixels; classes: number of foreground classes (each head adds its own background).
    """

    input: tuple[int, int]
    backbone: SerialBackbone
    neck: Fpn
    rpn: Rpn
    head: RoiHead
    classes: int

    def __post_init__(self):
        for side in self.input:
            _integer("input side", side, 32, 8192)
        _integer("classes", self.classes, 1, 10000)

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """The canonical one-line form; `fastnas.blueprint.parse` reads it back."""
        parts = [part_text(getattr(self, slot)) for slot in SLOTS]
        return "/".join([f"{self.input[0]}x{self.input[1]}", *parts, f"classes:{self.classes}"])

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; `from_dict` reads it back."""
        parts = {slot: {"kind": part_name(getattr(self, slot)), **_free_fields(getattr(self, slot))} for slot in SLOTS}
        return {"input": list(self.input), **parts, "classes": self.classes}

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
            if key not in data:
                raise BlueprintError(f"the blueprint has no {key!r}")
        size = data["input"]
        if not isinstance(size, list | tuple) or len(size) != 2:
            raise BlueprintError(f"input must be [height, width], not {show(size)}")
        return Blueprint(tuple(size), **{slot: _part_from_dict(slot, data[slot]) for slot in SLOTS}, classes=data["classes"])

    def replace(self, **changes) -> "Blueprint":
        return dataclasses.replace(self, **changes)


def part_name(part) -> str:
    """The name of a part in text and JSON, e.g. `bottleneck` or `fpn`."""
    for name, entry in PARTS.items():
        if type(part) is entry.cls and all(getattr(part, field) == value for field, value in entry.fixed):
            return name
    raise TypeError(f"{type(part).__name__} is not registered in PARTS")


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


def _part_from_dict(slot: str, data: Any):
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


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BlueprintError(f"{name} must be text, not {show(value)}")
    return value


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BlueprintError(f"{name} must be a whole number, not {show(value)}")
    if not low <= value <= high:
        raise BlueprintError(f"{name} is {show(value)}, it must be from {low} to {high}")


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BlueprintError(f"{name} is {show(value)}, it must be one of {', '.join(choices)}")
