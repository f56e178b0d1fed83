"""Region proposal network (Ren et al., 2015)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from fastnas.blueprint.check import integer
from fastnas.blueprint.operators import Layers, Operator, Operators
from fastnas.blueprint.spec import Shapes, Spec, added, conv_params
from fastnas.blueprint.wiring import BOXES, Wiring

ASPECT_RATIOS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Rpn:
    """Anchors of `scale` x stride, and of `sizes` - 1 doublings of that, in three aspect ratios on every level; the best become the
    head's regions."""

    proposals: int = 1000  # regions passed to the head; exactly this many are counted and priced
    scale: int = 8  # anchor side = scale x stride
    topk: int = 1000  # best scores kept per level before suppression
    sizes: int = 1  # of anchors on every level, each twice as large as the one before

    def __post_init__(self):
        integer("rpn proposals", self.proposals, 1, 10000)
        integer("rpn scale", self.scale, 1, 64)
        integer("rpn topk", self.topk, 1, 10000)
        integer("rpn sizes", self.sizes, 1, 8)

    def wire(self, wiring: Wiring, pyramid: dict[int, str]) -> str:
        channels = wiring.channels(next(iter(pyramid.values())))
        spec = RpnHead(channels, self.sizes * len(ASPECT_RATIOS))
        scores, deltas = [], []
        for level, value in pyramid.items():
            scores.append(wiring.add("rpn.head", spec, [value], (f"rpn.scores{level}", f"rpn.deltas{level}")))
            deltas.append(f"rpn.deltas{level}")
        strides = tuple(2**level for level in pyramid)
        selection = Proposals(wiring.input, strides, self.scale, ASPECT_RATIOS, self.topk, self.proposals, sizes=self.sizes)
        return wiring.add("rpn.proposals", selection, scores + deltas, (BOXES,))


@dataclass(frozen=True)
class RpnHead(Spec):
    """3x3 conv + ReLU, then 1x1 objectness and 1x1 box deltas; shared by all levels. Outputs: (1, A, H, W), (1, 4A, H, W)."""

    op = "rpn-head"
    channels: int
    anchors: int

    def params(self) -> int:
        c, a = self.channels, self.anchors
        return conv_params(c, c, 3, bias=True) + conv_params(c, a, 1, bias=True) + conv_params(c, 4 * a, 1, bias=True)

    def macs(self, inputs: Shapes) -> int:
        _, _, h, w = inputs[0]
        c, a = self.channels, self.anchors
        return (conv_params(c, c, 3) + conv_params(c, 5 * a, 1)) * h * w

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return (n, self.anchors, h, w), (n, 4 * self.anchors, h, w)

    def operators(self, inputs: Shapes) -> Operators:
        layers = Layers()
        x = layers.conv(self.channels, 3, inputs[0], activation="relu")
        layers.conv(self.anchors, 1, x)
        layers.conv(4 * self.anchors, 1, x)
        return layers.done()


@dataclass(frozen=True)
class Proposals(Operator):
    """Proposal selection: best `topk` anchors per level, decode, clip, suppress per level at IoU `nms`, keep `proposals`.

    Inputs: the objectness maps of all levels, then their delta maps. Output: boxes (proposals, 4) in input pixels.
    """

    op = "proposals"
    weights: ClassVar[tuple[float, float]] = (1.0, 1.0)  # of the deltas: of centres, of sides
    input: tuple[int, int]
    strides: tuple[int, ...]
    scale: int
    ratios: tuple[float, ...]
    topk: int
    proposals: int
    nms: float = 0.7
    sizes: int = added(1)

    def outputs(self, inputs: Shapes) -> Shapes:
        return ((self.proposals, 4),)

    def operations(self, inputs: Shapes) -> int:
        return pairs_within_levels(inputs[: len(self.strides)], self.topk)

    def launches(self, inputs: Shapes) -> int:
        """Top-k, decoding and suppression of every level, then the sort of all that is left."""
        return 3 * len(self.strides) + 1


def pairs_within_levels(scores: Shapes, topk: int) -> int:
    """Pairs of boxes whose overlap suppression may ask for, with `topk` boxes of each level, or as many as it has scores."""
    return sum(math.comb(min(topk, math.prod(shape)), 2) for shape in scores)
