"""Feature pyramid network (Lin et al., CVPR 2017)."""

from dataclasses import dataclass

from fastnas.blueprint.check import integer
from fastnas.blueprint.operators import Layers, Operators, Pass
from fastnas.blueprint.spec import Shapes, Spec, conv_params, half
from fastnas.blueprint.wiring import Wiring


@dataclass(frozen=True)
class Fpn:
    """Feature pyramid over all backbone levels plus one max-pooled level."""

    channels: int = 256

    def __post_init__(self):
        integer("fpn channels", self.channels, 8, 2048)

    def levels_over(self, maps: range) -> range:
        return range(maps.start, maps.stop + 1)

    def wire(self, wiring: Wiring, maps: dict[int, str]) -> dict[int, str]:
        pyramid: dict[int, str] = {}
        merged = None
        for level in sorted(maps, reverse=True):
            spec = FpnLevel(wiring.channels(maps[level]), self.channels, top=merged is None, feeds=level > min(maps))
            name = f"neck.p{level}"
            outputs = (name, f"{name}.merged") if spec.feeds else (name,)
            pyramid[level] = wiring.add(name, spec, [maps[level], merged] if merged else [maps[level]], outputs)
            merged = f"{name}.merged"
        top = max(maps)
        pyramid[top + 1] = wiring.add(f"neck.p{top + 1}", MaxPoolLevel(), [pyramid[top]])
        return dict(sorted(pyramid.items()))


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
        return conv_params(self.in_channels, self.channels, 1, bias=True) + conv_params(self.channels, self.channels, 3, bias=True)

    def macs(self, inputs: Shapes) -> int:
        _, _, h, w = inputs[0]
        return (conv_params(self.in_channels, self.channels, 1) + conv_params(self.channels, self.channels, 3)) * h * w

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.channels, h, w),) * (1 + self.feeds)

    def operators(self, inputs: Shapes) -> Operators:
        layers, size = Layers(), (1, self.channels, *inputs[0][2:])
        coarser = [layers.add(Pass("upsample", size), shape) for shape in inputs[1:]]
        layers.conv(self.channels, 3, layers.conv(self.channels, 1, inputs[0], *coarser))
        return layers.done()


@dataclass(frozen=True)
class MaxPoolLevel(Spec):
    """One coarser level by subsampling (max-pool of size 1, stride 2), as FPN's P6."""

    op = "max-pool-level"

    def outputs(self, inputs: Shapes) -> Shapes:
        n, c, h, w = inputs[0]
        return ((n, c, half(h), half(w)),)

    def operators(self, inputs: Shapes) -> Operators:
        layers = Layers()
        layers.max_pool(1, inputs[0])
        return layers.done()
