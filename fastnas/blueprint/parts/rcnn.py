"""Faster R-CNN head (Ren et al., 2015): pooled regions through two fully connected layers. `cascade.py` repeats it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastnas.blueprint.check import integer, one_of
from fastnas.blueprint.operators import Layers, Linear, Operator, Operators, elements
from fastnas.blueprint.spec import Shapes, Spec, added
from fastnas.blueprint.wiring import DETECTIONS, Wiring

if TYPE_CHECKING:
    from fastnas.blueprint.parts import Backbone, Head

SUPPRESSIONS = ("hard", "linear", "gaussian")  # the latter two: Soft-NMS (Bodla et al. 2017)
QUALITIES = ("standard", "high")
SCORES = {"standard": 0.05, "high": 0.001}  # below it a detection is dropped
Weights = tuple[float, float]


@dataclass(frozen=True)
class Stage:
    """How one stage of a head on regions reads its deltas, and what it is trained for."""

    iou: float  # with a box, from which on a region is positive
    weights: Weights  # deltas are this many times larger than the RPN's: of centres, of sides (1 / standard deviation)
    loss: float = 1.0  # weight of the stage's losses
    beta: float = 1 / 9  # where smooth L1 turns from quadratic to linear


# By the quality of proposals; standard as torchvision, high as the authors of guided anchoring (Wang et al. 2019).
TRAINING = {"standard": Stage(0.5, (10.0, 5.0)), "high": Stage(0.6, (20.0, 10.0))}


@dataclass(frozen=True)
class RoiHead:
    """RoIAlign 7x7 on the backbone's levels and two fully connected layers; box deltas for each class."""

    hidden: int = 1024
    detections: int = 100  # boxes kept per image
    suppression: str = "hard"  # hard | linear | gaussian
    quality: str = "standard"  # of the proposals; high: those of guided anchoring (trained at IoU 0.6, half the deviations)

    takes_proposals: ClassVar[bool] = True

    def __post_init__(self):
        integer("rcnn hidden", self.hidden, 8, 8192)
        check_suppression("rcnn", self)
        one_of("rcnn quality", self.quality, QUALITIES)

    @property
    def training(self) -> tuple[Stage, ...]:
        return (TRAINING[self.quality],)

    def wire(self, wiring: Wiring, pyramid: dict[int, str], backbone: "Backbone", classes: int, boxes: str) -> None:
        wire_stage(wiring, "head", pyramid, backbone.maps, boxes, self.hidden, classes, agnostic=False)
        wire_detections(wiring, self, [boxes, "head.logits", "head.deltas"])


def check_suppression(name: str, head: "Head") -> None:
    """The fields that every head has. Raises BlueprintError."""
    integer(f"{name} detections", head.detections, 1, 1000)
    one_of(f"{name} suppression", head.suppression, SUPPRESSIONS)


def wire_stage(
    wiring: Wiring, name: str, pyramid: dict[int, str], maps: range, boxes: str, hidden: int, classes: int, agnostic: bool
) -> None:
    """Pooling of `boxes` from the levels that the backbone has, and the layers on it: values `name.logits`, `name.deltas`."""
    levels = [level for level in pyramid if level in maps]
    values = [pyramid[level] for level in levels]
    pool = RoiPool(tuple(2**level for level in levels))
    regions = wiring.add(f"{name}.pool", pool, [*values, boxes])
    spec = BoxHead(wiring.channels(values[0]), pool.resolution, hidden, classes + 1, agnostic)
    wiring.add(f"{name}.box", spec, [regions], (f"{name}.logits", f"{name}.deltas"))


def wire_detections(wiring: Wiring, head: "Head", values: list[str]) -> None:
    """Final suppression of a head on regions. values: boxes, logits of every stage, deltas of the last."""
    score, weights = SCORES[head.quality], head.training[-1].weights
    suppression = Detections(wiring.input, head.detections, score, weights=weights, suppression=head.suppression)
    wiring.add("head.detections", suppression, values, DETECTIONS)


@dataclass(frozen=True)
class RoiPool(Operator):
    """Multi-level RoIAlign (He et al. 2017), level by the region's size. Inputs: levels, boxes. Output: (R, C, s, s)."""

    op = "roi-pool"
    strides: tuple[int, ...]
    resolution: int = 7
    sampling: int = 2

    def outputs(self, inputs: Shapes) -> Shapes:
        return ((inputs[-1][0], inputs[0][1], self.resolution, self.resolution),)

    def traffic(self, inputs: Shapes) -> int:
        """Every sample is read once: its four neighbours lie in caches, most pixels of the maps are never asked for."""
        return elements(self.outputs(inputs)) * (self.sampling**2 + 1)

    def operations(self, inputs: Shapes) -> int:
        return elements(self.outputs(inputs)) * 4 * self.sampling**2


@dataclass(frozen=True)
class BoxHead(Spec):
    """Two fully connected layers + ReLU, then class logits and box deltas. `logits` = classes + background.

    agnostic: four deltas for all classes together, otherwise four for each of the logits.
    """

    op = "box-head"
    channels: int
    resolution: int
    hidden: int
    logits: int
    agnostic: bool = added(False)

    @property
    def deltas(self) -> int:
        return 4 if self.agnostic else 4 * self.logits

    def _linears(self) -> list[tuple[int, int]]:
        inside = self.channels * self.resolution**2
        return [(inside, self.hidden), (self.hidden, self.hidden), (self.hidden, self.logits), (self.hidden, self.deltas)]

    def params(self) -> int:
        return sum(fan_in * fan_out + fan_out for fan_in, fan_out in self._linears())

    def macs(self, inputs: Shapes) -> int:
        return inputs[0][0] * sum(fan_in * fan_out for fan_in, fan_out in self._linears())

    def outputs(self, inputs: Shapes) -> Shapes:
        regions = inputs[0][0]
        return (regions, self.logits), (regions, self.deltas)

    def operators(self, inputs: Shapes) -> Operators:
        layers, x = Layers(), inputs[0]
        first, second, logits, deltas = self._linears()
        for sizes in (first, second):
            x = layers.add(Linear(*sizes, "relu"), x)
        for sizes in (logits, deltas):
            layers.add(Linear(*sizes), x)
        return layers.done()


@dataclass(frozen=True)
class Detections(Operator):
    """Final suppression: mean of the stages' softmax, scores over `score`, decode (per class, unless there are four deltas),
    class-wise suppression at IoU `nms`, best `detections`.

    Inputs: boxes, logits of every stage, deltas of the last. Outputs: boxes (D, 4) in input pixels, scores (D,), labels
    1..classes (D,).
    """

    op = "detections"
    input: tuple[int, int]
    detections: int
    score: float = 0.05
    nms: float = 0.5
    weights: Weights = added((10.0, 5.0))
    suppression: str = added("hard")

    def outputs(self, inputs: Shapes) -> Shapes:
        return (self.detections, 4), (self.detections,), (self.detections,)

    def operations(self, inputs: Shapes) -> int:
        """Pairs of boxes of one class whose overlap suppression may ask for."""
        regions, logits = inputs[1]
        return (logits - 1) * math.comb(regions, 2)

    def launches(self, inputs: Shapes) -> int:
        """Softmax, decoding, filter, sort, suppression, top-k."""
        return 6
