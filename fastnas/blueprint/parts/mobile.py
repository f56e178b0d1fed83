"""What MobileNetV2 and EfficientNet share: a convolution, then a chain of inverted residuals. Their own files say which."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from fastnas.blueprint.check import level_range
from fastnas.blueprint.operators import Layers, Operators, Pass
from fastnas.blueprint.spec import Shapes, Spec, conv_params, half
from fastnas.blueprint.wiring import IMAGE, Wiring


class MobileBackbone(ABC):
    """Levels Ci are the last maps of stride 2^i; blocks behind the last level, the 1x1 head and the classifier are left out."""

    name: ClassVar[str]  # in texts and messages
    levels: str

    def __post_init__(self):
        level_range(f"{self.name} levels", self.levels, 1, 5)

    @property
    def maps(self) -> range:
        return level_range(f"{self.name} levels", self.levels, 1, 5)

    def wire(self, wiring: Wiring, last: int) -> dict[int, str]:
        value = wiring.add("backbone.stem", self._stem(), [IMAGE])
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

    @abstractmethod
    def _stem(self) -> "MobileStem": ...

    @abstractmethod
    def _blocks(self) -> Iterator[tuple[int, str, "InvertedBottleneck"]]:
        """(level, name, spec) of every block behind the stem."""


def divisible(channels: float) -> int:
    """The nearest multiple of 8, at most a tenth smaller."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class MobileStem(Spec):
    """Convolution 3x3/2, batch norm, activation. Its dataclasses say the fields, or fix them for all."""

    activation: ClassVar[str]  # of operators
    channels: int
    padding: str  # same | symmetric
    norm: str  # tf | torch

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
        layers.conv(self.channels, 3, inputs[0], stride=2, activation=self.activation)
        return layers.done()


class InvertedBottleneck(Spec):
    """Inverted residual (Sandler et al. 2018). Its dataclasses say the fields, or fix them for all.

    1x1 expansion (none where `expansion` is 1), depthwise, squeeze-and-excitation (global mean, 1x1, SiLU, 1x1, sigmoid; none where
    `squeezed` is 0), linear 1x1 projection; plus the input where the shape stays. Batch norm behind the first, second and last.
    """

    activation: ClassVar[str]  # of operators
    in_channels: int
    out_channels: int
    expansion: int
    kernel: int
    stride: int
    padding: str  # same | symmetric
    norm: str  # tf | torch
    squeezed: int  # channels inside squeeze-and-excitation; 0: without

    @property
    def width(self) -> int:
        """Channels inside the block."""
        return self.in_channels * self.expansion

    @property
    def adds(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels

    def params(self) -> int:
        width, cin, cout = self.width, self.in_channels, self.out_channels
        expand = conv_params(cin, width, 1) + 2 * width if self.expansion != 1 else 0
        depthwise = conv_params(width, width, self.kernel, width) + 2 * width
        squeeze = conv_params(width, self.squeezed, 1, bias=True) + conv_params(self.squeezed, width, 1, bias=True)
        return expand + depthwise + squeeze * (self.squeezed > 0) + conv_params(width, cout, 1) + 2 * cout

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
            x = layers.conv(width, 1, x, activation=self.activation)
        x = layers.conv(width, self.kernel, x, stride=self.stride, groups=width, activation=self.activation)
        if self.squeezed:
            gate = layers.add(Pass("mean", (x[0], width, 1, 1)), x)
            gate = layers.conv(width, 1, layers.conv(self.squeezed, 1, gate, activation="silu"), activation="sigmoid")
            x = layers.add(Pass("scale", x), x, gate)
        layers.conv(self.out_channels, 1, x, *inputs[: self.adds])
        return layers.done()
