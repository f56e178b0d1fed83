"""Feature pyramid network (Lin et al., CVPR 2017), from any level to any other, with the coarser levels of Faster R-CNN (pooled)
or of RetinaNet (convolutions; Lin et al., ICCV 2017)."""

from dataclasses import dataclass

from fastnas.blueprint.check import integer, level_range, one_of
from fastnas.blueprint.code import BlueprintError
from fastnas.blueprint.operators import Layers, Operators, Pass
from fastnas.blueprint.spec import Shapes, Spec, added, conv_params, half
from fastnas.blueprint.wiring import Wiring

AUTO = "auto"
EXTRAS = ("pool", "conv-p", "conv-c")
NORMS = ("none", "bn", "gn", "gnws")


@dataclass(frozen=True)
class Fpn:
    """Laterals where the backbone has the level; levels that it does not have are made from its last one."""

    channels: int = 256
    levels: str = AUTO  # FIRST-LAST of the pyramid; auto: the backbone's levels and one more
    extra: str = "pool"  # levels after the backbone's. pool: every second pixel; conv-p, conv-c: 3x3/2 of its last P or C map
    norm: str = "none"  # none: convolutions with bias | bn | gn | gnws, each behind every convolution

    def __post_init__(self):
        integer("fpn channels", self.channels, 8, 2048)
        if self.levels != AUTO:
            level_range("fpn levels", self.levels, 1, 9)
        one_of("fpn extra", self.extra, EXTRAS)
        one_of("fpn norm", self.norm, NORMS)

    def levels_over(self, maps: range) -> range:
        """The pyramid's levels over a backbone that has `maps`. Raises BlueprintError where they do not meet."""
        if self.levels == AUTO:
            return range(maps.start, maps.stop + 1)
        levels = level_range("fpn levels", self.levels, 1, 9)
        if levels[0] not in maps:
            raise BlueprintError(f"fpn levels start at {levels[0]}, but the backbone has levels {maps[0]} to {maps[-1]}")
        return levels

    def wire(self, wiring: Wiring, maps: dict[int, str]) -> dict[int, str]:
        levels = self.levels_over(range(min(maps), max(maps) + 1))
        laterals = [level for level in levels if level in maps]
        pyramid: dict[int, str] = {}
        merged = None
        for level in reversed(laterals):
            inside, feeds = wiring.channels(maps[level]), level > laterals[0]
            spec = FpnLevel(inside, self.channels, top=merged is None, feeds=feeds, norm=self.norm)
            name = f"neck.p{level}"
            outputs = (name, f"{name}.merged") if feeds else (name,)
            pyramid[level] = wiring.add(name, spec, [maps[level], merged] if merged else [maps[level]], outputs)
            merged = f"{name}.merged"
        last = laterals[-1]
        finer = maps[last] if self.extra == "conv-c" else pyramid[last]
        for level in levels[len(laterals) :]:
            pooled = self.extra == "pool"
            spec = MaxPoolLevel() if pooled else ConvLevel(wiring.channels(finer), self.channels, level > last + 1, self.norm)
            finer = pyramid[level] = wiring.add(f"neck.p{level}", spec, [finer])
        return dict(sorted(pyramid.items()))


def _conv(norm: str, cin: int, cout: int, kernel: int) -> int:
    """Parameters of a convolution with a bias or with a norm behind it."""
    return conv_params(cin, cout, kernel, bias=norm == "none") + (0 if norm == "none" else 2 * cout)


@dataclass(frozen=True)
class FpnLevel(Spec):
    """One pyramid level: 1x1 lateral (+ the coarser level, nearest-upsampled to this size), then 3x3. Both with bias or norm.

    Inputs: C_l, and the merged map of level l+1 unless `top`. Outputs: P_l, and the merged map of this level if `feeds`.
    """

    op = "fpn-level"
    in_channels: int
    channels: int
    top: bool
    feeds: bool
    norm: str = added("none")

    def params(self) -> int:
        return _conv(self.norm, self.in_channels, self.channels, 1) + _conv(self.norm, self.channels, self.channels, 3)

    def macs(self, inputs: Shapes) -> int:
        _, _, h, w = inputs[0]
        return (conv_params(self.in_channels, self.channels, 1) + conv_params(self.channels, self.channels, 3)) * h * w

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.channels, h, w),) * (1 + self.feeds)

    def operators(self, inputs: Shapes) -> Operators:
        layers, size = Layers(), (1, self.channels, *inputs[0][2:])
        coarser = [layers.add(Pass("upsample", size), shape) for shape in inputs[1:]]
        layers.normed(self.norm, self.channels, 3, layers.normed(self.norm, self.channels, 1, inputs[0], *coarser))
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


@dataclass(frozen=True)
class ConvLevel(Spec):
    """One coarser level by a convolution 3x3/2, as RetinaNet's P6 and P7; `relu`: of the rectified map below, as P7."""

    op = "conv-level"
    in_channels: int
    channels: int
    relu: bool
    norm: str

    def params(self) -> int:
        return _conv(self.norm, self.in_channels, self.channels, 3)

    def macs(self, inputs: Shapes) -> int:
        _, _, h, w = self.outputs(inputs)[0]
        return conv_params(self.in_channels, self.channels, 3) * h * w

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.channels, half(h), half(w)),)

    def operators(self, inputs: Shapes) -> Operators:
        layers, x = Layers(), inputs[0]
        if self.relu:  # of what other layers read as it is: nothing to fold it into
            x = layers.add(Pass("fuse", x, activation="relu"), x)
        layers.normed(self.norm, self.channels, 3, x, stride=2)
        return layers.done()
