"""Region proposal by guided anchoring (Wang et al., CVPR 2019; numbers of mmdetection's GA-RPN)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from fastnas.blueprint.check import integer
from fastnas.blueprint.operators import Operator
from fastnas.blueprint.parts.rcnn import Weights
from fastnas.blueprint.parts.rpn import pairs_within_levels
from fastnas.blueprint.spec import Shapes, conv_params
from fastnas.blueprint.wiring import BOXES, Wiring

OFFSET_GROUPS = 4  # of the deformable convolution, where the channels can be divided so
MAPS = ("locations", "shapes", "scores", "deltas")  # outputs of the head


@dataclass(frozen=True)
class GuidedRpn:
    """One anchor a cell, whose sides are predicted: `scale` x stride times what the shape branch says, where the location branch
    expects an object. The best become the head's regions (take the head's quality=high)."""

    proposals: int = 300  # regions passed to the head; exactly this many are counted and priced
    scale: int = 8  # side of the squares that anchors are predicted from = scale x stride
    topk: int = 1000  # best scores kept per level before suppression

    def __post_init__(self):
        integer("garpn proposals", self.proposals, 1, 10000)
        integer("garpn scale", self.scale, 1, 64)
        integer("garpn topk", self.topk, 1, 10000)

    def wire(self, wiring: Wiring, pyramid: dict[int, str]) -> str:
        spec = GuidedHead(wiring.channels(next(iter(pyramid.values()))))
        for level, value in pyramid.items():
            wiring.add("rpn.head", spec, [value], tuple(f"rpn.{name}{level}" for name in MAPS))
        strides = tuple(2**level for level in pyramid)
        selection = GuidedProposals(wiring.input, strides, self.scale, self.topk, self.proposals)
        return wiring.add("rpn.proposals", selection, [f"rpn.{name}{level}" for name in MAPS for level in pyramid], (BOXES,))


@dataclass(frozen=True)
class GuidedHead(Operator):
    """3x3 conv + ReLU; from it 1x1 location and 1x1 shape (logarithms of width and height). 1x1 conv of the shape -> offsets of a
    deformable 3x3 conv + ReLU; from it 1x1 objectness and 1x1 box deltas. Shared by all levels.

    Outputs: location (1, 1, H, W), shape (1, 2, H, W), objectness (1, 1, H, W), deltas (1, 4, H, W).
    """

    op = "guided-head"
    channels: int

    @property
    def offsets(self) -> int:
        """Channels of the offsets: x and y of 9 samples for each group of channels."""
        return 2 * 9 * math.gcd(OFFSET_GROUPS, self.channels)

    def params(self) -> int:
        c = self.channels
        with_bias = conv_params(c, c, 3, bias=True) + sum(conv_params(c, out, 1, bias=True) for out in (1, 2, 1, 4))
        return with_bias + conv_params(2, self.offsets, 1) + conv_params(c, c, 3)

    def macs(self, inputs: Shapes) -> int:
        _, c, h, w = inputs[0]
        return (2 * conv_params(c, c, 3) + conv_params(c, 8, 1) + conv_params(2, self.offsets, 1)) * h * w

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return (n, 1, h, w), (n, 2, h, w), (n, 1, h, w), (n, 4, h, w)

    def launches(self, inputs: Shapes) -> int:
        """Seven convolutions and the sampling of the deformable one."""
        return 8


@dataclass(frozen=True)
class GuidedProposals(Operator):
    """Proposal selection: anchors from the shapes; best `topk` of each level among those cells whose location probability reaches
    `location`; decode, clip, suppress per level at IoU `nms`, keep `proposals`.

    Inputs: location maps of all levels, then shape maps, objectness maps and delta maps. Output: boxes (proposals, 4) in input
    pixels.
    """

    op = "guided-proposals"
    ratios: ClassVar[tuple[float, ...]] = (1.0,)  # of the squares
    sizes: ClassVar[int] = 1
    weights: ClassVar[Weights] = (1 / 0.07, 1 / 0.11)  # of the deltas
    deviation: ClassVar[float] = 0.14  # of the predicted logarithms of the sides
    input: tuple[int, int]
    strides: tuple[int, ...]
    scale: int
    topk: int
    proposals: int
    location: float = 0.01
    nms: float = 0.7

    def outputs(self, inputs: Shapes) -> Shapes:
        return ((self.proposals, 4),)

    def operations(self, inputs: Shapes) -> int:
        return pairs_within_levels(inputs[: len(self.strides)], self.topk)

    def launches(self, inputs: Shapes) -> int:
        """Anchors, filter, top-k, decoding and suppression of every level, then the sort of all that is left."""
        return 5 * len(self.strides) + 1
