"""Faster R-CNN head (Ren et al., 2015): pooled regions through two fully connected layers."""

from dataclasses import dataclass
from typing import ClassVar

from fastnas.blueprint.check import integer
from fastnas.blueprint.operators import Layers, Linear, Operator, Operators, elements
from fastnas.blueprint.spec import Shapes, Spec
from fastnas.blueprint.wiring import DETECTIONS, Wiring


@dataclass(frozen=True)
class RoiHead:
    """RoIAlign 7x7 on the backbone's levels and two fully connected layers."""

    hidden: int = 1024
    detections: int = 100  # boxes kept per image

    takes_proposals: ClassVar[bool] = True

    def __post_init__(self):
        integer("rcnn hidden", self.hidden, 8, 8192)
        integer("rcnn detections", self.detections, 1, 1000)

    def wire(self, wiring: Wiring, pyramid: dict[int, str], maps: range, classes: int, boxes: str) -> None:
        levels = [level for level in pyramid if level in maps]
        values = [pyramid[level] for level in levels]
        pool = RoiPool(tuple(2**level for level in levels))
        regions = wiring.add("head.pool", pool, [*values, boxes])
        spec = BoxHead(wiring.channels(values[0]), pool.resolution, self.hidden, classes + 1)
        wiring.add("head.box", spec, [regions], ("head.logits", "head.deltas"))
        wiring.add("head.detections", Detections(wiring.input, self.detections), [boxes, "head.logits", "head.deltas"], DETECTIONS)


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
    """Two fully connected layers + ReLU, then class logits and per-class box deltas. `logits` = classes + background."""

    op = "box-head"
    channels: int
    resolution: int
    hidden: int
    logits: int

    def _linears(self) -> list[tuple[int, int]]:
        inside = self.channels * self.resolution**2
        return [(inside, self.hidden), (self.hidden, self.hidden), (self.hidden, self.logits), (self.hidden, 4 * self.logits)]

    def params(self) -> int:
        return sum(fan_in * fan_out + fan_out for fan_in, fan_out in self._linears())

    def macs(self, inputs: Shapes) -> int:
        return inputs[0][0] * sum(fan_in * fan_out for fan_in, fan_out in self._linears())

    def outputs(self, inputs: Shapes) -> Shapes:
        regions = inputs[0][0]
        return (regions, self.logits), (regions, 4 * self.logits)

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
    """Final suppression: softmax, scores over `score`, decode per class, class-wise suppression at IoU `nms`, best `detections`.

    Inputs: boxes, logits, deltas. Outputs: boxes (D, 4) in input pixels, scores (D,), labels 1..classes (D,).
    """

    op = "detections"
    input: tuple[int, int]
    detections: int
    score: float = 0.05
    nms: float = 0.5

    def outputs(self, inputs: Shapes) -> Shapes:
        return (self.detections, 4), (self.detections,), (self.detections,)

    def operations(self, inputs: Shapes) -> int:
        """Pairs of boxes of one class whose overlap suppression may ask for."""
        regions, logits = inputs[1]
        return (logits - 1) * regions * (regions - 1) // 2

    def launches(self, inputs: Shapes) -> int:
        """Softmax, decoding, filter, sort, suppression, top-k."""
        return 6
