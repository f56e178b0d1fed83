"""EfficientDet's heads (Tan, Pang & Le, CVPR 2020, section 4): class and box towers over all levels, no proposals."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastnas.blueprint.check import YES_NO, integer, one_of
from fastnas.blueprint.code import BlueprintError
from fastnas.blueprint.operators import Layers, Operator, Operators, elements
from fastnas.blueprint.parts.rcnn import check_suppression
from fastnas.blueprint.spec import Shapes, Spec, added, conv_params
from fastnas.blueprint.wiring import DETECTIONS, Wiring

if TYPE_CHECKING:
    from fastnas.blueprint.parts import Backbone

# Width and height of the anchors of one scale; the authors' rounding of sqrt(2) and its inverse, which their weights expect.
ASPECTS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))


@dataclass(frozen=True)
class EffdetHead:
    """Two towers of separable convolutions, shared by all levels, with a batch norm of its own for every level and layer.

    Anchors: `scale` x stride x 2^(o/octaves) in three aspects on every cell. Box codes are (ty, tx, th, tw).
    """

    repeats: int  # separable convolutions before the predictors
    channels: int = 0  # 0: as many as the neck's
    scale: int = 4
    octaves: int = 3
    bias: str = "yes"  # of the convolutions before batch norm; without effect, but the published weights have it
    topk: int = 5000  # (anchor, class) pairs kept before suppression
    detections: int = 100  # boxes kept per image
    suppression: str = "hard"  # hard | linear | gaussian (the authors')

    takes_proposals: ClassVar[bool] = False

    def __post_init__(self):
        integer("effdet repeats", self.repeats, 0, 32)
        integer("effdet channels", self.channels, 0, 2048)
        integer("effdet scale", self.scale, 1, 64)
        integer("effdet octaves", self.octaves, 1, 16)
        one_of("effdet bias", self.bias, YES_NO)
        integer("effdet topk", self.topk, 1, 1_000_000)
        check_suppression("effdet", self)
        if self.channels and not self.repeats:
            raise BlueprintError("effdet channels are those of the repeated convolutions, but repeats is 0")

    def wire(self, wiring: Wiring, pyramid: dict[int, str], backbone: "Backbone", classes: int, boxes: str | None) -> None:
        inside = wiring.channels(next(iter(pyramid.values())))
        anchors = self.octaves * len(ASPECTS)
        outputs = []
        for name, values in (("classes", classes), ("boxes", 4)):
            spec = HeadTower(name, inside, self.channels or inside, self.repeats, anchors * values, len(pyramid), self.bias)
            for level, value in pyramid.items():
                outputs.append(wiring.add(f"head.{name}", spec, [value], (f"head.{name}{level}",)))
        suppression = AnchorDetections(
            wiring.input, self.scale, self.octaves, ASPECTS, self.topk, self.detections, suppression=self.suppression
        )
        wiring.add("head.detections", suppression, outputs, DETECTIONS)


@dataclass(frozen=True)
class HeadTower(Spec):
    """`repeats` times depthwise 3x3, pointwise 1x1, batch norm, SiLU; then depthwise 3x3, pointwise 1x1 with bias to `outputs`.

    Used once a level: the convolutions are shared, every use has batch norms of its own.
    """

    op = "head-tower"
    per_use = True
    predicts: str  # classes | boxes
    in_channels: int
    channels: int
    repeats: int
    out_channels: int
    levels: int
    bias: str

    def layers(self) -> list[tuple[int, int]]:
        """(in, out) channels of every separable convolution; the predictor is last."""
        widths = [self.in_channels, *[self.channels] * self.repeats, self.out_channels]
        return list(zip(widths, widths[1:], strict=False))

    def params(self) -> int:
        *repeated, (cin, cout) = self.layers()
        bias = self.bias == "yes"
        convs = sum(conv_params(a, a, 3, a) + conv_params(a, b, 1, bias=bias) for a, b in repeated)
        norms = 2 * self.channels * self.repeats * self.levels
        return convs + norms + conv_params(cin, cin, 3, cin) + conv_params(cin, cout, 1, bias=True)

    def macs(self, inputs: Shapes) -> int:
        _, _, h, w = inputs[0]
        return sum(conv_params(a, a, 3, a) + conv_params(a, b, 1) for a, b in self.layers()) * h * w

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.out_channels, h, w),)

    def operators(self, inputs: Shapes) -> Operators:
        layers, x, widths = Layers(), inputs[0], self.layers()
        for index, (cin, cout) in enumerate(widths, 1):
            x = layers.conv(cin, 3, x, groups=cin)
            x = layers.conv(cout, 1, x, activation="silu" if index < len(widths) else "")
        return layers.done()


@dataclass(frozen=True)
class AnchorDetections(Operator):
    """Final suppression of a one-stage detector: the best `topk` (anchor, class) pairs by sigmoid score, decoded, class-wise
    suppression at IoU `nms`, best `detections` with a score over `score`.

    Inputs: class maps (1, A classes, H, W) of all levels, then box maps (1, 4 A, H, W). Outputs: boxes (D, 4) in input pixels,
    scores (D,), labels 1..classes (D,).
    """

    op = "anchor-detections"
    codes: ClassVar[tuple[int, ...]] = (1, 0, 3, 2)  # where x, y, width and height stand in a box code
    each_level: ClassVar[bool] = False
    background: ClassVar[int] = 0
    input: tuple[int, int]
    scale: int
    octaves: int
    aspects: tuple[tuple[float, float], ...]
    topk: int
    detections: int
    score: float = 0.001
    nms: float = 0.5
    suppression: str = added("hard")

    @property
    def anchors(self) -> int:
        """Anchors of one cell."""
        return self.octaves * len(self.aspects)

    def outputs(self, inputs: Shapes) -> Shapes:
        return (self.detections, 4), (self.detections,), (self.detections,)

    def operations(self, inputs: Shapes) -> int:
        """Pairs of boxes whose overlap suppression may ask for, where all of them are of one class."""
        boxes = min(self.topk, elements(inputs[: len(inputs) // 2]))
        return math.comb(boxes, 2)

    def launches(self, inputs: Shapes) -> int:
        """Sigmoid and concatenation of every level, then top-k, decoding, filter, sort, suppression, top-k."""
        return len(inputs) + 6
