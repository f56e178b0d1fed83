"""Modules of the feature pyramid (`fastnas.blueprint.parts.fpn`)."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.models.layers import ConvNorm, conv


def pyramid_conv(cin: int, cout: int, kernel: int, stride: int, norm: str) -> nn.Module:
    """A convolution with a bias, or with a norm behind it."""
    return conv(cin, cout, kernel, stride, bias=True) if norm == "none" else ConvNorm(cin, cout, kernel, stride, norm)


class FpnLevel(nn.Module):
    """C_l (and the merged map of level l+1) -> P_l (and the merged map of this level)."""

    def __init__(self, s: spec.FpnLevel):
        super().__init__()
        self.feeds = s.feeds
        self.lateral = pyramid_conv(s.in_channels, s.channels, 1, 1, s.norm)
        self.output = pyramid_conv(s.channels, s.channels, 3, 1, s.norm)

    def forward(self, x: Tensor, coarser: Tensor | None = None):
        merged = self.lateral(x)
        if coarser is not None:
            merged = merged + F.interpolate(coarser, size=merged.shape[-2:], mode="nearest")
        return (self.output(merged), merged) if self.feeds else self.output(merged)

    def initialize(self) -> None:
        initialize_pyramid(self)


class MaxPoolLevel(nn.Module):
    """P_l -> P_{l+1} by taking every second pixel."""

    def __init__(self, s: spec.MaxPoolLevel):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 1, stride=2)


class ConvLevel(nn.Module):
    """P_l or C_l -> P_{l+1} by a convolution of stride 2."""

    def __init__(self, s: spec.ConvLevel):
        super().__init__()
        self.relu = s.relu
        self.output = pyramid_conv(s.in_channels, s.channels, 3, 2, s.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.relu(x) if self.relu else x)

    def initialize(self) -> None:
        initialize_pyramid(self)


def initialize_pyramid(module: nn.Module) -> None:
    """Uniform with variance 1 / fan in, biases zero."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_uniform_(child.weight, a=1)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
