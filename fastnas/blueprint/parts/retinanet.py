"""RetinaNet's heads (Lin et al., ICCV 2017): class and box towers over all levels, no proposals."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastnas.blueprint.check import YES_NO, integer, one_of
from fastnas.blueprint.operators import Layers, Operator, Operators, elements
from fastnas.blueprint.parts.fpn import NORMS
from fastnas.blueprint.parts.rcnn import check_suppression
from fastnas.blueprint.parts.rpn import ASPECT_RATIOS
from fastnas.blueprint.spec import Shapes, Spec, conv_params
from fastnas.blueprint.wiring import DETECTIONS, Wiring

if TYPE_CHECKING:
    from fastnas.blueprint.parts import Backbone


@dataclass(frozen=True)
class RetinaHead:
    """Two towers of 3x3 convolutions, shared by all levels. Anchors: `scale` x stride x 2^(o/octaves) in three aspect ratios."""

    convs: int  # before the predictors
    norm: str = "none"  # none: convolutions with bias | bn (of its own for every level) | gn | gnws
    scale: int = 4
    octaves: int = 3
    background: str = "no"  # yes: an output 0 that no box ever has, as torchvision's weights
    topk: int = 1000  # (anchor, class) pairs of each level kept before suppression
    detections: int = 100  # boxes kept per image
    suppression: str = "hard"  # hard | linear | gaussian

    takes_proposals: ClassVar[bool] = False

    def __post_init__(self):
        integer("retinanet convs", self.convs, 0, 32)
        one_of("retinanet norm", self.norm, NORMS)
        integer("retinanet scale", self.scale, 1, 64)
        integer("retinanet octaves", self.octaves, 1, 16)
        one_of("retinanet background", self.background, YES_NO)
        integer("retinanet topk", self.topk, 1, 1_000_000)
        check_suppression("retinanet", self)

    def wire(self, wiring: Wiring, pyramid: dict[int, str], backbone: "Backbone", classes: int, boxes: str | None) -> None:
        channels = wiring.channels(next(iter(pyramid.values())))
        background = int(self.background == "yes")
        outputs = []
        for name, values in (("classes", classes + background), ("boxes", 4)):
            anchors = self.octaves * len(ASPECT_RATIOS)
            spec = ConvTower(name, channels, self.convs, anchors * values, len(pyramid), self.norm)
            for level, value in pyramid.items():
                outputs.append(wiring.add(f"head.{name}", spec, [value], (f"head.{name}{level}",)))
        strides = tuple(2**level for level in pyramid)
        suppression = RetinaDetections(
            wiring.input, strides, self.scale, self.octaves, ASPECT_RATIOS, background, self.topk, self.detections,
            suppression=self.suppression,
        )  # fmt: skip
        wiring.add("head.detections", suppression, outputs, DETECTIONS)


@dataclass(frozen=True)
class ConvTower(Spec):
    """`convs` times 3x3 convolution and ReLU, with a norm between them or with a bias; then 3x3 with bias to `out_channels`.

    Used once a level: the convolutions are shared, and so are group norms, but every use has batch norms of its own.
    """

    op = "conv-tower"
    per_use = True
    predicts: str  # classes | boxes
    channels: int
    convs: int
    out_channels: int
    levels: int
    norm: str

    @property
    def norms(self) -> int:
        """Norms behind one convolution."""
        return {"none": 0, "bn": self.levels}.get(self.norm, 1)

    def params(self) -> int:
        one = conv_params(self.channels, self.channels, 3, bias=self.norm == "none") + 2 * self.channels * self.norms
        return self.convs * one + conv_params(self.channels, self.out_channels, 3, bias=True)

    def macs(self, inputs: Shapes) -> int:
        _, _, h, w = inputs[0]
        inside, last = (conv_params(self.channels, out, 3) for out in (self.channels, self.out_channels))
        return (self.convs * inside + last) * h * w

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.out_channels, h, w),)

    def operators(self, inputs: Shapes) -> Operators:
        layers, x = Layers(), inputs[0]
        for _ in range(self.convs):
            x = layers.normed(self.norm, self.channels, 3, x, activation="relu")
        layers.conv(self.out_channels, 3, x)
        return layers.done()


@dataclass(frozen=True)
class RetinaDetections(Operator):
    """Final suppression as torchvision's: of each level the best `topk` (anchor, class) pairs by sigmoid score, decoded;
    class-wise suppression at IoU `nms`, best `detections` with a score over `score`.

    Inputs: class maps (1, A (background + classes), H, W) of all levels, then box maps (1, 4 A, H, W). Outputs: boxes (D, 4) in
    input pixels, scores (D,), labels 1..classes (D,).
    """

    op = "retina-detections"
    codes: ClassVar[tuple[int, ...]] = (0, 1, 2, 3)  # where x, y, width and height stand in a box code
    each_level: ClassVar[bool] = True
    input: tuple[int, int]
    strides: tuple[int, ...]
    scale: int
    octaves: int
    ratios: tuple[float, ...]
    background: int  # outputs before the classes that are no class
    topk: int
    detections: int
    score: float = 0.05
    nms: float = 0.5
    suppression: str = "hard"

    @property
    def anchors(self) -> int:
        """Anchors of one cell."""
        return self.octaves * len(self.ratios)

    def outputs(self, inputs: Shapes) -> Shapes:
        return (self.detections, 4), (self.detections,), (self.detections,)

    def operations(self, inputs: Shapes) -> int:
        """Pairs of boxes whose overlap suppression may ask for, where all of them are of one class."""
        boxes = sum(min(self.topk, elements((shape,))) for shape in inputs[: len(self.strides)])
        return math.comb(boxes, 2)

    def launches(self, inputs: Shapes) -> int:
        """Sigmoid, top-k and decoding of every level, then filter, sort, suppression, top-k."""
        return 3 * len(self.strides) + 4
