"""No neck, and the head that goes with it (Ren et al. 2015 with the ResNet of He et al. 2016, known as C4): what the backbone has
behind the level that proposals come from runs on every region."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastnas.blueprint.check import integer, one_of
from fastnas.blueprint.code import BlueprintError
from fastnas.blueprint.operators import Layers, Linear, Operators, Pass
from fastnas.blueprint.parts.rcnn import QUALITIES, TRAINING, RoiPool, Stage, check_suppression, wire_detections
from fastnas.blueprint.spec import Shapes, Spec
from fastnas.blueprint.wiring import Wiring

if TYPE_CHECKING:
    from fastnas.blueprint.parts import Backbone


@dataclass(frozen=True)
class NoNeck:
    """The map of one level of the backbone, as it is."""

    level: int

    def __post_init__(self):
        integer("none level", self.level, 1, 9)

    def levels_over(self, maps: range) -> range:
        """The one level. Raises BlueprintError where the backbone, which has `maps`, lacks it."""
        if self.level not in maps:
            raise BlueprintError(f"the neck none hands on level {self.level}, but the backbone has levels {maps[0]} to {maps[-1]}")
        return range(self.level, self.level + 1)

    def wire(self, wiring: Wiring, maps: dict[int, str]) -> dict[int, str]:
        return {self.level: maps[self.level]}


@dataclass(frozen=True)
class C4Head:
    """RoIAlign, the backbone's blocks behind the neck's level, the mean over the region, class logits and box deltas."""

    resolution: int = 14  # of RoIAlign
    detections: int = 100  # boxes kept per image
    suppression: str = "hard"  # hard | linear | gaussian
    quality: str = "standard"  # of the proposals; high: those of guided anchoring

    takes_proposals: ClassVar[bool] = True

    def __post_init__(self):
        integer("c4 resolution", self.resolution, 1, 64)
        check_suppression("c4", self)
        one_of("c4 quality", self.quality, QUALITIES)

    @property
    def training(self) -> tuple[Stage, ...]:
        return (TRAINING[self.quality],)

    def wire(self, wiring: Wiring, pyramid: dict[int, str], backbone: "Backbone", classes: int, boxes: str) -> None:
        ((level, value),) = pyramid.items()
        regions = wiring.add("head.pool", RoiPool((2**level,), self.resolution), [value, boxes])
        regions = backbone.wire_rest(wiring, level, regions)
        predictor = RegionPredictor(wiring.channels(regions), classes + 1)
        wiring.add("head.box", predictor, [regions], ("head.logits", "head.deltas"))
        wire_detections(wiring, self, [boxes, "head.logits", "head.deltas"])


@dataclass(frozen=True)
class RegionPredictor(Spec):
    """Mean of each region (R, C, s, s), then class logits and box deltas of every class (none of the background, `logits` - 1)."""

    op = "region-predictor"
    channels: int
    logits: int

    def _linears(self) -> tuple[int, int]:
        return self.logits, 4 * (self.logits - 1)

    def params(self) -> int:
        return sum(self.channels * out + out for out in self._linears())

    def macs(self, inputs: Shapes) -> int:
        return inputs[0][0] * self.channels * sum(self._linears())

    def outputs(self, inputs: Shapes) -> Shapes:
        return tuple((inputs[0][0], out) for out in self._linears())

    def operators(self, inputs: Shapes) -> Operators:
        layers, regions = Layers(), inputs[0][0]
        mean = layers.add(Pass("mean", (regions, self.channels, 1, 1)), inputs[0])
        for out in self._linears():
            layers.add(Linear(self.channels, out), mean)
        return layers.done()
