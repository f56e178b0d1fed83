"""BiFPN: weighted bidirectional feature pyramid (EfficientDet: Tan, Pang & Le, CVPR 2020, section 3)."""

from dataclasses import dataclass

from fastnas.blueprint.check import YES_NO, integer, level_range, one_of
from fastnas.blueprint.code import BlueprintError
from fastnas.blueprint.operators import Layers, Operators, Pass
from fastnas.blueprint.spec import Shape, Shapes, Spec, conv_params, half
from fastnas.blueprint.wiring import Wiring

METHODS = ("fast", "softmax", "sum")
PADDINGS = ("same", "symmetric")


@dataclass(frozen=True)
class Bifpn:
    """`repeats` layers over the levels; levels that the backbone does not have are pooled from its last one.

    One layer, levels a to b: top-down, every level but b adds its coarser neighbour; bottom-up, every level but a adds all that
    it has so far and its finer neighbour. 2 (b - a) nodes.
    """

    channels: int
    repeats: int = 3
    levels: str = "3-7"  # FIRST-LAST of the pyramid
    method: str = "fast"  # fast: weights through ReLU and normalised; softmax; sum: no weights (D6 and larger)
    padding: str = "same"  # of the pooling; same: TensorFlow's, as the published weights need; symmetric
    bias: str = "yes"  # of the 1x1 convolutions before batch norm; without effect, but the published weights have it

    def __post_init__(self):
        integer("bifpn channels", self.channels, 8, 2048)
        integer("bifpn repeats", self.repeats, 1, 32)
        level_range("bifpn levels", self.levels, 1, 9)
        one_of("bifpn method", self.method, METHODS)
        one_of("bifpn padding", self.padding, PADDINGS)
        one_of("bifpn bias", self.bias, YES_NO)

    def levels_over(self, maps: range) -> range:
        """The pyramid's levels over a backbone that has `maps`. Raises BlueprintError where they do not meet."""
        levels = level_range("bifpn levels", self.levels, 1, 9)
        if levels[0] not in maps:
            raise BlueprintError(f"bifpn levels start at {levels[0]}, but the backbone has levels {maps[0]} to {maps[-1]}")
        if len(levels) < 2:
            raise BlueprintError(f"bifpn levels {self.levels} are one level: there is nothing to fuse")
        return levels

    def wire(self, wiring: Wiring, maps: dict[int, str]) -> dict[int, str]:
        levels = level_range("bifpn levels", self.levels, 1, 9)
        values = {level: maps[level] for level in levels if level in maps}
        for level in levels[len(values) :]:
            finer = values[level - 1]
            spec = CoarserLevel(wiring.channels(finer), self.channels, self.padding, self.bias)
            values[level] = wiring.add(f"neck.p{level}", spec, [finer])
        for layer in range(1, self.repeats + 1):
            values = self._layer(wiring, f"neck.layer{layer}", values)
        return values

    def _layer(self, wiring: Wiring, name: str, inputs: dict[int, str]) -> dict[int, str]:
        first, last = min(inputs), max(inputs)
        seen = {level: [value] for level, value in inputs.items()}  # all maps of a level so far
        for level in range(last - 1, first - 1, -1):
            end = "out" if level == first else "td"
            seen[level].append(self._node(wiring, f"{name}.{end}{level}", [seen[level][-1], seen[level + 1][-1]]))
        for level in range(first + 1, last + 1):
            seen[level].append(self._node(wiring, f"{name}.out{level}", [*seen[level], seen[level - 1][-1]]))
        return {level: maps[-1] for level, maps in seen.items()}

    def _node(self, wiring: Wiring, name: str, inputs: list[str]) -> str:
        channels = tuple(map(wiring.channels, inputs))
        return wiring.add(name, FusionNode(channels, self.channels, self.method, self.padding, self.bias), inputs)


@dataclass(frozen=True)
class CoarserLevel(Spec):
    """P_l -> P_{l+1}: 1x1 convolution and batch norm where the channels change, then max-pool 3x3/2."""

    op = "coarser-level"
    in_channels: int
    channels: int
    padding: str
    bias: str

    @property
    def projects(self) -> bool:
        return self.in_channels != self.channels

    def params(self) -> int:
        return conv_params(self.in_channels, self.channels, 1, bias=self.bias == "yes") + 2 * self.channels if self.projects else 0

    def macs(self, inputs: Shapes) -> int:
        _, _, h, w = inputs[0]
        return conv_params(self.in_channels, self.channels, 1) * h * w if self.projects else 0

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.channels, half(h), half(w)),)

    def operators(self, inputs: Shapes) -> Operators:
        layers, x = Layers(), inputs[0]
        layers.max_pool(3, layers.conv(self.channels, 1, x) if self.projects else x)
        return layers.done()


@dataclass(frozen=True)
class FusionNode(Spec):
    """One node: weighted sum of maps brought to the size of the first, SiLU, depthwise 3x3, pointwise 1x1, batch norm.

    An input of other channels first passes a 1x1 convolution and batch norm of its own; larger maps are max-pooled 3x3/2, smaller
    ones repeated (nearest neighbour).
    """

    op = "fusion-node"
    in_channels: tuple[int, ...]
    channels: int
    method: str
    padding: str
    bias: str

    @property
    def projected(self) -> tuple[int, ...]:
        """Which inputs pass a 1x1 convolution."""
        return tuple(index for index, channels in enumerate(self.in_channels) if channels != self.channels)

    @property
    def weights(self) -> int:
        return 0 if self.method == "sum" else len(self.in_channels)

    def params(self) -> int:
        channels, bias = self.channels, self.bias == "yes"
        edges = sum(conv_params(self.in_channels[index], channels, 1, bias=bias) + 2 * channels for index in self.projected)
        separable = conv_params(channels, channels, 3, channels) + conv_params(channels, channels, 1, bias=bias)
        return edges + self.weights + separable + 2 * channels

    def macs(self, inputs: Shapes) -> int:
        channels = self.channels
        edges = sum(conv_params(inputs[i][1], channels, 1) * inputs[i][2] * inputs[i][3] for i in self.projected)
        _, _, h, w = inputs[0]
        return edges + (conv_params(channels, channels, 3, channels) + conv_params(channels, channels, 1)) * h * w

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.channels, h, w),)

    def operators(self, inputs: Shapes) -> Operators:
        layers, size = Layers(), (1, self.channels, *inputs[0][2:])
        maps = [layers.conv(self.channels, 1, x) if i in self.projected else x for i, x in enumerate(inputs)]
        maps = [_resized(layers, x, size) for x in maps]
        x = layers.add(Pass("fuse", size, activation="silu"), *maps)
        layers.conv(self.channels, 1, layers.conv(self.channels, 3, x, groups=self.channels))
        return layers.done()


def _resized(layers: Layers, x: Shape, size: Shape) -> Shape:
    """A map brought to a size: pooled where it is larger, repeated where it is smaller."""
    if x[2] > size[2] or x[3] > size[3]:
        return layers.max_pool(3, x)
    return x if x == size else layers.add(Pass("upsample", size), x)
