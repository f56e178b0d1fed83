"""EfficientNet backbone (Tan & Le, ICML 2019): B0 to B7, or B0 scaled by any width and depth."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from fastnas.blueprint.check import level_range, one_of, string
from fastnas.blueprint.code import BlueprintError
from fastnas.blueprint.operators import Layers, Operators, Pass
from fastnas.blueprint.show import show
from fastnas.blueprint.spec import Shapes, Spec, conv_params, half
from fastnas.blueprint.wiring import IMAGE, Wiring, stage_block_name

# Compound scaling: width and depth of each variant (table 2 and the authors' code).
VARIANTS = {
    "b0": (1.0, 1.0), "b1": (1.0, 1.1), "b2": (1.1, 1.2), "b3": (1.2, 1.4),
    "b4": (1.4, 1.8), "b5": (1.6, 2.2), "b6": (1.8, 2.6), "b7": (2.0, 3.1),
}  # fmt: skip
# B0's stages (table 1): expansion, channels, repeats, stride of the first block, kernel, level of its output.
STAGES = (
    (1, 16, 1, 1, 3, 1),
    (6, 24, 2, 2, 3, 2),
    (6, 40, 2, 2, 5, 3),
    (6, 80, 3, 2, 3, 4),
    (6, 112, 3, 1, 5, 4),
    (6, 192, 4, 2, 5, 5),
    (6, 320, 1, 1, 3, 5),
)
STEM_CHANNELS = 32
SQUEEZE = 4  # squeeze-and-excitation has a quarter of the block's input channels
PADDINGS = ("same", "symmetric")
NORMS = ("tf", "torch")


@dataclass(frozen=True)
class EfficientNet:
    """Levels Ci are the last maps of stride 2^i; blocks behind the last level, the 1x1 head and the classifier are left out."""

    variant: str  # b0 ... b7, or WIDTHxDEPTH as multiples of b0, e.g. 1.1x1.2
    levels: str = "3-5"  # FIRST-LAST of the levels handed to the neck, within 1-5
    padding: str = "same"  # same: TensorFlow's, as the published weights need; symmetric: cheaper, as PyTorch's convolutions pad
    norm: str = "tf"  # batch norm's eps and momentum, tf: 1e-3 and 0.01; torch: 1e-5 and 0.1

    def __post_init__(self):
        _scaling(self.variant)
        level_range("efficientnet levels", self.levels, 1, 5)
        one_of("efficientnet padding", self.padding, PADDINGS)
        one_of("efficientnet norm", self.norm, NORMS)

    @property
    def maps(self) -> range:
        return level_range("efficientnet levels", self.levels, 1, 5)

    def wire(self, wiring: Wiring, last: int) -> dict[int, str]:
        width, _ = _scaling(self.variant)
        stem = SiluStem(_round_channels(STEM_CHANNELS * width), self.padding, self.norm)
        value = wiring.add("backbone.stem", stem, [IMAGE])
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

    def _blocks(self) -> Iterator[tuple[int, str, "MobileBlock"]]:
        """(level, name, spec) of every block behind the stem."""
        width, depth = _scaling(self.variant)
        channels = _round_channels(STEM_CHANNELS * width)
        for stage, (expansion, base, repeats, stride, kernel, level) in enumerate(STAGES):
            out = _round_channels(base * width)
            for block in range(math.ceil(repeats * depth)):
                spec = MobileBlock(channels, out, expansion, kernel, 1 if block else stride, self.padding, self.norm)
                yield level, stage_block_name(stage, block), spec
                channels = out


def _scaling(variant: str) -> tuple[float, float]:
    """Width and depth of a variant, as multiples of B0's."""
    if string("efficientnet variant", variant) in VARIANTS:
        return VARIANTS[variant]
    found = re.fullmatch(r"(\d{1,2}(?:\.\d{1,3})?)x(\d{1,2}(?:\.\d{1,3})?)", variant, re.ASCII)
    if not found:
        known = ", ".join(VARIANTS)
        raise BlueprintError(f"efficientnet variant {show(variant)} is none of {known} and no WIDTHxDEPTH such as 1.1x1.2")
    width, depth = float(found[1]), float(found[2])
    if variant != (canonical := f"{width:g}x{depth:g}"):  # one network, one text
        raise BlueprintError(f"efficientnet variant {show(variant)} must be written {canonical}")
    if not (0.1 <= width <= 10 and 0.1 <= depth <= 10):
        raise BlueprintError(f"efficientnet variant {show(variant)}: width and depth must be from 0.1 to 10")
    return width, depth


def _round_channels(channels: float) -> int:
    """The nearest multiple of 8, but never less than 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


@dataclass(frozen=True)
class SiluStem(Spec):
    """Convolution 3x3/2, batch norm, SiLU."""

    op = "silu-stem"
    channels: int
    padding: str
    norm: str

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
        layers.conv(self.channels, 3, inputs[0], stride=2, activation="silu")
        return layers.done()


@dataclass(frozen=True)
class MobileBlock(Spec):
    """Inverted residual (Sandler et al. 2018) with squeeze-and-excitation (Hu et al. 2018), SiLU and batch norm.

    1x1 expansion (none where `expansion` is 1), depthwise, squeeze-and-excitation (global mean, 1x1, SiLU, 1x1, sigmoid), linear
    1x1 projection; plus the input where the shape stays.
    """

    op = "mobile-block"
    in_channels: int
    out_channels: int
    expansion: int
    kernel: int
    stride: int
    padding: str
    norm: str

    @property
    def width(self) -> int:
        """Channels inside the block."""
        return self.in_channels * self.expansion

    @property
    def squeezed(self) -> int:
        return max(1, self.in_channels // SQUEEZE)

    @property
    def adds(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels

    def params(self) -> int:
        width, cin, cout = self.width, self.in_channels, self.out_channels
        expand = conv_params(cin, width, 1) + 2 * width if self.expansion != 1 else 0
        depthwise = conv_params(width, width, self.kernel, width) + 2 * width
        squeeze = conv_params(width, self.squeezed, 1, bias=True) + conv_params(self.squeezed, width, 1, bias=True)
        return expand + depthwise + squeeze + conv_params(width, cout, 1) + 2 * cout

    def macs(self, inputs: Shapes) -> int:
        n, _, h, w = inputs[0]
        _, _, oh, ow = self.outputs(inputs)[0]
        width = self.width
        expand = conv_params(self.in_channels, width, 1) * h * w if self.expansion != 1 else 0
        return n * (
            expand
            + (conv_params(width, width, self.kernel, width) + conv_params(width, self.out_channels, 1)) * oh * ow
            + 2 * width * self.squeezed
        )

    def outputs(self, inputs: Shapes) -> Shapes:
        n, _, h, w = inputs[0]
        return ((n, self.out_channels, half(h), half(w)) if self.stride == 2 else (n, self.out_channels, h, w),)

    def operators(self, inputs: Shapes) -> Operators:
        layers, x, width = Layers(), inputs[0], self.width
        if self.expansion != 1:
            x = layers.conv(width, 1, x, activation="silu")
        x = layers.conv(width, self.kernel, x, stride=self.stride, groups=width, activation="silu")
        gate = layers.add(Pass("mean", (x[0], width, 1, 1)), x)
        gate = layers.conv(width, 1, layers.conv(self.squeezed, 1, gate, activation="silu"), activation="sigmoid")
        x = layers.add(Pass("scale", x), x, gate)
        layers.conv(self.out_channels, 1, x, *inputs[: self.adds])
        return layers.done()
