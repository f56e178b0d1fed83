"""MobileNetV2 backbone (Sandler et al., CVPR 2018), in torchvision's form."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from fastnas.blueprint.check import string
from fastnas.blueprint.code import BlueprintError
from fastnas.blueprint.parts.mobile import InvertedBottleneck, MobileBackbone, MobileStem, divisible
from fastnas.blueprint.show import show
from fastnas.blueprint.wiring import stage_block_name

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
class MobileNetV2(MobileBackbone):
    """Table 2 at any width."""

    name: ClassVar[str] = "mobilenetv2"
    width: str  # channels as a multiple of the published ones, e.g. 1 or 0.75
    levels: str = "2-5"  # FIRST-LAST of the levels handed to the neck, within 1-5

    def __post_init__(self):
        _multiple(self.width)
        super().__post_init__()

    def _stem(self) -> "Relu6Stem":
        return Relu6Stem(divisible(STEM_CHANNELS * _multiple(self.width)))

    def _blocks(self) -> Iterator[tuple[int, str, "InvertedResidual"]]:
        width = _multiple(self.width)
        channels = divisible(STEM_CHANNELS * width)
        for stage, (expansion, base, repeats, stride, level) in enumerate(STAGES):
            out = divisible(base * width)
            for block in range(repeats):
                yield level, stage_block_name(stage, block), InvertedResidual(channels, out, expansion, 1 if block else stride)
                channels = out


def _multiple(width: str) -> float:
    if not re.fullmatch(r"\d(?:\.\d{1,3})?", string("mobilenetv2 width", width), re.ASCII) or not 0.1 <= float(width) <= 4:
        raise BlueprintError(f"mobilenetv2 width {show(width)} must be a number from 0.1 to 4, e.g. 0.75")
    if width != (canonical := f"{float(width):g}"):  # one network, one text
        raise BlueprintError(f"mobilenetv2 width {show(width)} must be written {canonical}")
    return float(width)


@dataclass(frozen=True)
class Relu6Stem(MobileStem):
    """With ReLU6, which costs what ReLU does."""

    op = "relu6-stem"
    activation = "relu"
    padding: ClassVar[str] = "symmetric"
    norm: ClassVar[str] = "torch"
    channels: int


@dataclass(frozen=True)
class InvertedResidual(InvertedBottleneck):
    """With ReLU6, which costs what ReLU does; depthwise 3x3, no squeeze-and-excitation."""

    op = "inverted-residual"
    activation = "relu"
    kernel: ClassVar[int] = 3
    padding: ClassVar[str] = "symmetric"
    norm: ClassVar[str] = "torch"
    squeezed: ClassVar[int] = 0
    in_channels: int
    out_channels: int
    expansion: int
    stride: int
