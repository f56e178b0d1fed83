"""MobileNetV2 backbone (Sandler et al., CVPR 2018), in torchvision's form."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fastnas.blueprint.check import level_range, string
from fastnas.blueprint.code import BlueprintError
from fastnas.blueprint.operators import Layers, Operators
from fastnas.blueprint.show import show
from fastnas.blueprint.spec import Shapes, Spec, conv_params, half
from fastnas.blueprint.wiring import IMAGE, Wiring, stage_block_name

# Table 2: expansion, channels, repeats, stride of the first block, level of the stage's output.
STAGES = (
    (1, 16, 1, 1, 1),
    (6, 24, 2, 2, 2),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 4),
    (6, 96, 3, 1, 4),
    (6, 160, 3, 2, 5),
    (6, 320, 1, 1, 5),
)
STEM_CHANNELS = 32


@dataclass(frozen=True)
class MobileNetV2:
    """Levels Ci are the last maps of stride 2^i; blocks behind the last level, the 1x1 head and the classifier are left out."""

    width: str  # channels as a multiple of the published ones, e.g. 1 or 0.75
    levels: str = "2-5"  # FIRST-LAST of the levels handed to the neck, within 1-5

    def __post_init__(self):
        _multiple(self.width)
        level_range("mobilenetv2 levels", self.levels, 1, 5)

    @property
    def maps(self) -> range:
        return level_range("mobilenetv2 levels", self.levels, 1, 5)

    def wire(self, wiring: Wiring, last: int) -> dict[int, str]:
        value = wiring.add("backbone.stem", Relu6Stem(_divisible(STEM_CHANNELS * _multiple(self.width))), [IMAGE])
        maps = {}
        for level, name, spec in self._blocks():
            if level <= last:
                value = maps[level] = wiring.add(name, spec, [value])
        return {level: maps[level] for level in self.maps if level <= last}

    def wire_rest(self, wiring: Wiring, level: int, value: str) -> str:
        for at, name, spec in self._blocks():
            if level < at <= self.maps[-1]:
                value = wiring.add(name, spec, [value])
        return value

    def _blocks(self) -> Iterator[tuple[int, str, "InvertedResidual"]]:
        """(level, name, spec) of every block behind the stem."""
        width = _multiple(self.width)
        channels = _divisible(STEM_CHANNELS * width)
        for stage, (expansion, base, repeats, stride, level) in enumerate(STAGES):
            out = _divisible(base * width)
            for block in range(repeats):
                yield level, stage_block_name(stage, block), InvertedResidual(channels, out, expansion, 1 if block else stride)
                channels = out


def _multiple(width: str) -> float:
    if not re.fullmatch(r"\d(?:\.\d{1,3})?", string("mobilenetv2 width", width), re.ASCII) or not 0.1 <= float(width) <= 4:
        raise BlueprintError(f"mobilenetv2 width {show(width)} must be a number from 0.1 to 4, e.g. 0.75")
    if width != (canonical := f"{float(width):g}"):  # one network, one text
        raise BlueprintError(f"mobilenetv2 width {show(width)} must be written {canonical}")
    return float(width)


def _divisible(channels: float) -> int:
    """The nearest multiple of 8, at most a tenth smaller."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


@dataclass(frozen=True)
class Relu6Stem(Spec):
    """Conv 3x3/2, batch norm, ReLU6."""

    op = "relu6-stem"
    channels: int

    def params(self) -> int:
        return conv_params(3, self.channels, 3) + 2 * self.channels

    def macs(self, inputs: Shapes) -> int:
        _, _, h, w = self.outputs(inputs)[0]
        return conv_params(3, self.channels, 3) * h * w

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.channels, half(h), half(w)),)

    def operators(self, inputs: Shapes) -> Operators:
        layers = Layers()
        layers.conv(self.channels, 3, inputs[0], stride=2, activation="relu")
        return layers.done()


@dataclass(frozen=True)
class InvertedResidual(Spec):
    """1x1 expansion (none where it is 1), depthwise 3x3, both with ReLU6, linear 1x1 projection; plus the input where the shape
    stays. Batch norm behind each."""

    op = "inverted-residual"
    in_channels: int
    out_channels: int
    expansion: int
    stride: int

    @property
    def width(self) -> int:
        """Channels inside the block."""
        return self.in_channels * self.expansion

    @property
    def adds(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels

    def params(self) -> int:
        width, out = self.width, self.out_channels
        expand = conv_params(self.in_channels, width, 1) + 2 * width if self.expansion != 1 else 0
        return expand + conv_params(width, width, 3, width) + 2 * width + conv_params(width, out, 1) + 2 * out

    def macs(self, inputs: Shapes) -> int:
        n, _, h, w = inputs[0]
        _, out, oh, ow = self.outputs(inputs)[0]
        width = self.width
        expand = conv_params(self.in_channels, width, 1) * h * w if self.expansion != 1 else 0
        return n * (expand + (conv_params(width, width, 3, width) + conv_params(width, out, 1)) * oh * ow)

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.out_channels, half(h), half(w)) if self.stride == 2 else (n, self.out_channels, h, w),)

    def operators(self, inputs: Shapes) -> Operators:
        """ReLU6 costs what ReLU does."""
        layers, x, width = Layers(), inputs[0], self.width
        if self.expansion != 1:
            x = layers.conv(width, 1, x, activation="relu")
        x = layers.conv(width, 3, x, stride=self.stride, groups=width, activation="relu")
        layers.conv(self.out_channels, 1, x, *inputs[: self.adds])
        return layers.done()
