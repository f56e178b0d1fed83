"""Modules of the serial backbone (`fastnas.blueprint.parts.serial`). Parameter names follow torchvision's ResNet."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.models.layers import ConvNorm, conv, initialize_convs, make_norm


class Stem(nn.Module):
    """Image (N, 3, H, W) -> (N, C, H/4, W/4), and the map behind the first convolution if it is tapped."""

    def __init__(self, s: spec.Stem):
        super().__init__()
        self.pools, self.taps = s.kind == "7x7", s.taps
        self.conv1 = conv(3, s.first, 7 if self.pools else 3, stride=2, norm=s.norm)
        self.norm1 = make_norm(s.norm, s.first, "relu", s.channels // 2)
        if not self.pools:
            self.conv2 = conv(s.first, s.channels, 3, stride=2, norm=s.norm)
            self.norm2 = make_norm(s.norm, s.channels, "relu", s.channels // 2)

    def forward(self, x: Tensor):
        first = self.norm1(self.conv1(x))
        x = F.max_pool2d(first, 3, stride=2, padding=1) if self.pools else self.norm2(self.conv2(first))
        return (x, first) if self.taps else x

    def initialize(self) -> None:
        initialize_convs(self)


class Residual(nn.Module):
    """All kinds of residual blocks: (N, Cin, H, W) -> (N, Cout, H/stride, W/stride)."""

    def __init__(self, s: spec.Residual):
        super().__init__()
        convs = s.convs()[:-1] if s.projects else s.convs()
        strided = 0 if s.kind == "basic" else 1  # the 3x3 convolution that carries the stride
        self.depth = len(convs)
        for index, (cin, cout, kernel, groups, _) in enumerate(convs):
            stride = s.stride if index == strided else 1
            self.add_module(f"conv{index + 1}", conv(cin, cout, kernel, stride, groups, norm=s.norm))
            self.add_module(f"norm{index + 1}", make_norm(s.norm, cout, "relu", s.base // 2))
        self.downsample = ConvNorm(s.in_channels, s.out_channels, 1, s.stride, s.norm, s.base // 2) if s.projects else None

    @property
    def last_norm(self) -> nn.Module:
        """The norm whose weight of zero makes the block an identity (behind its shortcut)."""
        return getattr(self, f"norm{self.depth}")

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for index in range(1, self.depth):
            x = getattr(self, f"norm{index}")(getattr(self, f"conv{index}")(x))
        return self.last_norm(getattr(self, f"conv{self.depth}")(x), shortcut)

    def initialize(self) -> None:
        """An identity where there is no projection: the network starts shallow (Goyal et al. 2017)."""
        initialize_convs(self)
        if self.downsample is None:
            nn.init.zeros_(self.last_norm.weight)
