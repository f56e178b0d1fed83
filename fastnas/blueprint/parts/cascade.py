"""Cascade R-CNN head (Cai & Vasconcelos, CVPR 2018): every stage works on the boxes of the one before it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastnas.blueprint.check import integer, one_of
from fastnas.blueprint.operators import Operator
from fastnas.blueprint.parts.rcnn import QUALITIES, Stage, Weights, check_suppression, wire_detections, wire_stage
from fastnas.blueprint.spec import Shapes
from fastnas.blueprint.wiring import Wiring

if TYPE_CHECKING:
    from fastnas.blueprint.parts import Backbone

# Stages 1 to 3 are the published ones, with mmdetection's loss weights and smooth L1; deviations and loss weight of the fourth
# go on as they do. After guided anchoring everything is one stage tighter, with 3/4 of the deviations (SM-NAS's released code).
IOU = {"standard": (0.5, 0.6, 0.7, 0.75), "high": (0.6, 0.7, 0.75, 0.8)}
DEVIATIONS = (0.1, 0.05, 0.033, 0.025), (0.2, 0.1, 0.067, 0.05)  # of the deltas of centres, of sides
LOSS = (1.0, 0.5, 0.25, 0.125)
SHRINK = {"standard": 1.0, "high": 0.75}


@dataclass(frozen=True)
class CascadeHead:
    """2, 3 or 4 stages of RoIAlign 7x7 and two fully connected layers, with box deltas that all classes share."""

    stages: int
    hidden: int = 1024
    detections: int = 100  # boxes kept per image
    suppression: str = "hard"  # hard | linear | gaussian
    quality: str = "standard"  # of the proposals; high: those of guided anchoring

    takes_proposals: ClassVar[bool] = True

    def __post_init__(self):
        integer("cascade stages", self.stages, 2, 4)
        integer("cascade hidden", self.hidden, 8, 8192)
        check_suppression("cascade", self)
        one_of("cascade quality", self.quality, QUALITIES)

    @property
    def training(self) -> tuple[Stage, ...]:
        shrink = SHRINK[self.quality]
        weights = [tuple(1 / (shrink * deviation) for deviation in pair) for pair in zip(*DEVIATIONS, strict=True)]
        stages = zip(IOU[self.quality], weights, LOSS, strict=True)
        return tuple(Stage(iou, pair, loss, beta=1.0) for iou, pair, loss in stages)[: self.stages]

    def wire(self, wiring: Wiring, pyramid: dict[int, str], backbone: "Backbone", classes: int, boxes: str) -> None:
        logits = []
        for number, stage in enumerate(self.training, 1):
            name = f"head.stage{number}"
            wire_stage(wiring, name, pyramid, backbone.maps, boxes, self.hidden, classes, agnostic=True)
            logits.append(f"{name}.logits")
            if number < self.stages:
                boxes = wiring.add(f"{name}.refine", Refine(wiring.input, stage.weights), [boxes, f"{name}.deltas"])
        wire_detections(wiring, self, [boxes, *logits, f"{name}.deltas"])


@dataclass(frozen=True)
class Refine(Operator):
    """Boxes (R, 4) and a stage's deltas (R, 4) -> the next stage's boxes (R, 4), inside the image."""

    op = "refine"
    input: tuple[int, int]
    weights: Weights

    def outputs(self, inputs: Shapes) -> Shapes:
        return (inputs[0],)
