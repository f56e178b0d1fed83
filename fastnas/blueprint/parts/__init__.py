"""The parts of a detector: one file a part, with its fields, its wiring and its specs. A new part is registered in `PARTS`."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from fastnas.blueprint.parts.bifpn import Bifpn
from fastnas.blueprint.parts.c4 import C4Head, NoNeck
from fastnas.blueprint.parts.cascade import CascadeHead
from fastnas.blueprint.parts.effdet import EffdetHead
from fastnas.blueprint.parts.efficientnet import EfficientNet
from fastnas.blueprint.parts.fpn import Fpn
from fastnas.blueprint.parts.guided import GuidedRpn
from fastnas.blueprint.parts.mobilenet import MobileNetV2
from fastnas.blueprint.parts.rcnn import RoiHead
from fastnas.blueprint.parts.retinanet import RetinaHead
from fastnas.blueprint.parts.rpn import Rpn
from fastnas.blueprint.parts.serial import BLOCK_KINDS, SerialBackbone
from fastnas.blueprint.wiring import Wiring


class Backbone(Protocol):
    """`maps`: the levels that it has for the neck, e.g. 2 to 5. `wire` adds its blocks up to level `last`: value by level.
    `wire_rest` adds those behind a level, as a head runs them on regions: the value of what they make of `value`.
    """

    @property
    def maps(self) -> range: ...

    def wire(self, wiring: Wiring, last: int) -> dict[int, str]: ...

    def wire_rest(self, wiring: Wiring, level: int, value: str) -> str: ...


class Neck(Protocol):
    """`levels_over`: the pyramid's levels over a backbone with `maps`, or BlueprintError. `wire`: value by level, finest first."""

    def levels_over(self, maps: range) -> range: ...

    def wire(self, wiring: Wiring, maps: dict[int, str]) -> dict[int, str]: ...


class Proposer(Protocol):
    """`wire` adds what finds the regions of a two-stage detector: the value of their boxes."""

    def wire(self, wiring: Wiring, pyramid: dict[int, str]) -> str: ...


class Head(Protocol):
    """`wire` adds what comes behind the neck. boxes: the proposals where the head takes some, else None."""

    takes_proposals: ClassVar[bool]
    detections: int  # boxes kept per image
    suppression: str  # one of rcnn.SUPPRESSIONS

    def wire(self, wiring: Wiring, pyramid: dict[int, str], backbone: Backbone, classes: int, boxes: str | None) -> None: ...


@dataclass(frozen=True)
class Part:
    """How one part is written: in JSON `{"kind": name, field: value, ...}`, in text `name:main,option=value`."""

    slot: str  # field of Blueprint
    cls: type
    main: str  # the field written right after the colon
    fixed: tuple[tuple[str, str], ...] = ()  # fields that the name itself fixes


PARTS: dict[str, Part] = {
    **{kind: Part("backbone", SerialBackbone, "code", (("block", kind),)) for kind in BLOCK_KINDS},
    "efficientnet": Part("backbone", EfficientNet, "variant"),
    "mobilenetv2": Part("backbone", MobileNetV2, "width"),
    "fpn": Part("neck", Fpn, "channels"),
    "bifpn": Part("neck", Bifpn, "channels"),
    "none": Part("neck", NoNeck, "level"),
    "rpn": Part("rpn", Rpn, "proposals"),
    "garpn": Part("rpn", GuidedRpn, "proposals"),
    "rcnn": Part("head", RoiHead, "hidden"),
    "cascade": Part("head", CascadeHead, "stages"),
    "c4": Part("head", C4Head, "resolution"),
    "retinanet": Part("head", RetinaHead, "convs"),
    "effdet": Part("head", EffdetHead, "repeats"),
}
SLOTS = ("backbone", "neck", "rpn", "head")
OPTIONAL = ("rpn",)  # slots that a blueprint may leave empty
