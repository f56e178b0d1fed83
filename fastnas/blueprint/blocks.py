"""Specs: what each block is, with its parameters, MACs and output shapes. The only place where they are counted.

A spec is a frozen dataclass. `fastnas.models` builds a module from it and turns it into ONNX, `fastnas.latency` prices it.
Shapes are full tensor shapes at batch 1: feature maps (1, C, H, W), regions (R, C, s, s), boxes (R, 4).
MACs are multiply-adds of convolutions and linear layers; everything else counts zero.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import ClassVar

Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]


def half(side: int) -> int:
    """Output side of every stride-2 layer used here (3x3 pad 1, 7x7 pad 3, 1x1, pooling 3x3 pad 1)."""
    return (side + 1) // 2


def gn_groups(channels: int) -> int:
    """Groups of a GroupNorm: 16 channels each (Wu & He 2018, Table 3) where 16 divides, else the largest power of two that does."""
    return channels // math.gcd(channels, 16)


class Spec:
    """Base of all specs. `op` names the kind in tables and in JSON."""

    op: ClassVar[str]

    def params(self) -> int:
        return 0

    def macs(self, inputs: Shapes) -> int:
        return 0

    def outputs(self, inputs: Shapes) -> Shapes:
        raise TypeError(f"{type(self).__name__} does not say its output shapes")

    def to_dict(self) -> dict:
        """Canonical description, the same for equal specs in every process."""
        return {"op": self.op, **dataclasses.asdict(self)}

    def key(self, inputs: Shapes) -> str:
        """Identifies this block at these input shapes in a latency table (canonical JSON)."""
        return json.dumps({**self.to_dict(), "inputs": inputs}, sort_keys=True, separators=(",", ":"))


def _conv(cin: int, cout: int, kernel: int, groups: int = 1, bias: bool = False) -> int:
    return cin // groups * cout * kernel * kernel + cout * bias


@dataclass(frozen=True)
class Stem(Spec):
    """`7x7`: conv 7x7/2, norm, ReLU, max-pool 3x3/2 (ResNet). `3x3`: twice conv 3x3/2, norm, ReLU (SP-NAS). Stride 4 in all."""

    op = "stem"
    kind: str
    channels: int
    norm: str

    def params(self) -> int:
        if self.kind == "7x7":
            return _conv(3, self.channels, 7) + 2 * self.channels
        middle = self.channels // 2
        return _conv(3, middle, 3) + 2 * middle + _conv(middle, self.channels, 3) + 2 * self.channels

    def macs(self, inputs: Shapes) -> int:
        h, w = half(inputs[0][2]), half(inputs[0][3])
        if self.kind == "7x7":
            return _conv(3, self.channels, 7) * h * w
        middle = self.channels // 2
        return _conv(3, middle, 3) * h * w + _conv(middle, self.channels, 3) * half(h) * half(w)

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.channels, half(half(h)), half(half(w))),)


@dataclass(frozen=True)
class Residual(Spec):
    """Residual block (He et al. 2016; ResNeXt: Xie et al. 2017); stride on the 3x3; 1x1 projection where the shape changes."""

    op = "residual"
    kind: str
    in_channels: int
    planes: int
    stride: int
    norm: str

    @property
    def out_channels(self) -> int:
        return self.planes if self.kind == "basic" else 4 * self.planes

    @property
    def groups(self) -> int:
        return 32 if self.kind == "resnext32x4d" else 1

    @property
    def width(self) -> int:
        """Channels inside the block; ResNeXt 32x4d: floor(planes x 4 / 64) x 32."""
        return self.planes * 4 // 64 * 32 if self.kind == "resnext32x4d" else self.planes

    @property
    def projects(self) -> bool:
        return self.stride != 1 or self.in_channels != self.out_channels

    def convs(self) -> list[tuple[int, int, int, int, bool]]:
        """(in channels, out channels, kernel, groups, at the output's resolution?) of every convolution; the projection is last."""
        cin, width, cout = self.in_channels, self.width, self.out_channels
        if self.kind == "basic":
            chain = [(cin, width, 3, 1, True), (width, cout, 3, 1, True)]
        else:
            chain = [(cin, width, 1, 1, False), (width, width, 3, self.groups, True), (width, cout, 1, 1, True)]
        return chain + [(cin, cout, 1, 1, True)] * self.projects

    def params(self) -> int:
        return sum(_conv(cin, cout, kernel, groups) + 2 * cout for cin, cout, kernel, groups, _ in self.convs())

    def macs(self, inputs: Shapes) -> int:
        _, _, h, w = inputs[0]
        _, _, oh, ow = self.outputs(inputs)[0]
        return sum(
            _conv(cin, cout, kernel, groups) * (oh * ow if small else h * w) for cin, cout, kernel, groups, small in self.convs()
        )

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.out_channels, half(h), half(w)) if self.stride == 2 else (n, self.out_channels, h, w),)


@dataclass(frozen=True)
class FpnLevel(Spec):
    """One pyramid level: 1x1 lateral (+ the coarser level, nearest-upsampled to this size), then 3x3. Both with bias.

    Inputs: C_l, and the merged map of level l+1 unless `top`. Outputs: P_l, and the merged map of this level if `feeds`.
    """

    op = "fpn-level"
    in_channels: int
    channels: int
    top: bool
    feeds: bool

    def params(self) -> int:
        return _conv(self.in_channels, self.channels, 1, bias=True) + _conv(self.channels, self.channels, 3, bias=True)

    def macs(self, inputs: Shapes) -> int:
        _, _, h, w = inputs[0]
        return (_conv(self.in_channels, self.channels, 1) + _conv(self.channels, self.channels, 3)) * h * w

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.channels, h, w),) * (1 + self.feeds)


@dataclass(frozen=True)
class MaxPoolLevel(Spec):
    """One coarser level by subsampling (max-pool of size 1, stride 2), as FPN's P6."""

    op = "max-pool-level"

    def outputs(self, inputs: Shapes) -> Shapes:
        n, c, h, w = inputs[0]
        return ((n, c, half(h), half(w)),)


@dataclass(frozen=True)
class RpnHead(Spec):
    """3x3 conv + ReLU, then 1x1 objectness and 1x1 box deltas; shared by all levels. Outputs: (1, A, H, W), (1, 4A, H, W)."""

    op = "rpn-head"
    channels: int
    anchors: int

    def params(self) -> int:
        c, a = self.channels, self.anchors
        return _conv(c, c, 3, bias=True) + _conv(c, a, 1, bias=True) + _conv(c, 4 * a, 1, bias=True)

    def macs(self, inputs: Shapes) -> int:
        _, _, h, w = inputs[0]
        c, a = self.channels, self.anchors
        return (_conv(c, c, 3) + _conv(c, 5 * a, 1)) * h * w

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return (n, self.anchors, h, w), (n, 4 * self.anchors, h, w)


@dataclass(frozen=True)
class Proposals(Spec):
    """Proposal selection: best `topk` anchors per level, decode, clip, suppress per level at IoU `nms`, keep `proposals`.

    Inputs: the objectness maps of all levels, then their delta maps. Output: boxes (proposals, 4) in input pixels.
    """

    op = "proposals"
    input: tuple[int, int]
    strides: tuple[int, ...]
    scale: int
    ratios: tuple[float, ...]
    topk: int
    proposals: int
    nms: float = 0.7

    def outputs(self, inputs: Shapes) -> Shapes:
        return ((self.proposals, 4),)


@dataclass(frozen=True)
class RoiPool(Spec):
    """Multi-level RoIAlign (He et al. 2017), level by the region's size. Inputs: levels, boxes. Output: (R, C, s, s)."""

    op = "roi-pool"
    strides: tuple[int, ...]
    resolution: int = 7
    sampling: int = 2

    def outputs(self, inputs: Shapes) -> Shapes:
        return ((inputs[-1][0], inputs[0][1], self.resolution, self.resolution),)


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


@dataclass(frozen=True)
class Detections(Spec):
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
