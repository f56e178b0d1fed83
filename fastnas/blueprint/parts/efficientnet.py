"""EfficientNet backbone (Tan & Le, ICML 2019): B0 to B7, or B0 scaled by any width and depth."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from fastnas.blueprint.check import one_of, string
from fastnas.blueprint.code import BlueprintError
from fastnas.blueprint.parts.mobile import InvertedBottleneck, MobileBackbone, MobileStem, divisible
from fastnas.blueprint.show import show
from fastnas.blueprint.wiring import stage_block_name

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
class EfficientNet(MobileBackbone):
    """B0's stages at any width and depth."""

    name: ClassVar[str] = "efficientnet"
    variant: str  # b0 ... b7, or WIDTHxDEPTH as multiples of b0, e.g. 1.1x1.2
    levels: str = "3-5"  # FIRST-LAST of the levels handed to the neck, within 1-5
    padding: str = "same"  # same: TensorFlow's, as the published weights need; symmetric: cheaper, as PyTorch's convolutions pad
    norm: str = "tf"  # batch norm's eps and momentum, tf: 1e-3 and 0.01; torch: 1e-5 and 0.1

    def __post_init__(self):
        _scaling(self.variant)
        super().__post_init__()
        one_of("efficientnet padding", self.padding, PADDINGS)
        one_of("efficientnet norm", self.norm, NORMS)

    def _stem(self) -> "SiluStem":
        width, _ = _scaling(self.variant)
        return SiluStem(divisible(STEM_CHANNELS * width), self.padding, self.norm)

    def _blocks(self) -> Iterator[tuple[int, str, "MobileBlock"]]:
        width, depth = _scaling(self.variant)
        channels = divisible(STEM_CHANNELS * width)
        for stage, (expansion, base, repeats, stride, kernel, level) in enumerate(STAGES):
            out = divisible(base * width)
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


@dataclass(frozen=True)
class SiluStem(MobileStem):
    """With SiLU."""

    op = "silu-stem"
    activation = "silu"
    channels: int
    padding: str
    norm: str


@dataclass(frozen=True)
class MobileBlock(InvertedBottleneck):
    """With SiLU; squeeze-and-excitation (Hu et al. 2018) has a quarter of the input's channels."""

    op = "mobile-block"
    activation = "silu"
    in_channels: int
    out_channels: int
    expansion: int
    kernel: int
    stride: int
    padding: str
    norm: str

    @property
    def squeezed(self) -> int:
        return max(1, self.in_channels // SQUEEZE)
