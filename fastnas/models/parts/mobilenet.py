"""Modules of MobileNetV2 (`fastnas.blueprint.parts.mobilenet`)."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.models.layers import BatchNorm2d, conv, initialize_convs


class Relu6Stem(nn.Module):
    """Image (N, 3, H, W) -> (N, C, H/2, W/2)."""

    def __init__(self, s: spec.Relu6Stem):
        super().__init__()
        self.conv1 = conv(3, s.channels, 3, stride=2)
        self.norm1 = BatchNorm2d(s.channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.norm1(self.conv1(x)), inplace=True)

    def initialize(self) -> None:
        initialize_convs(self)


class InvertedResidual(nn.Module):
    """(N, Cin, H, W) -> (N, Cout, H/stride, W/stride)."""

    def __init__(self, s: spec.InvertedResidual):
        super().__init__()
        self.expands, self.adds = s.expansion != 1, s.adds
        if self.expands:
            self.conv1 = conv(s.in_channels, s.width, 1)
            self.norm1 = BatchNorm2d(s.width)
        self.conv2 = conv(s.width, s.width, 3, s.stride, s.width)
        self.norm2 = BatchNorm2d(s.width)
        self.conv3 = conv(s.width, s.out_channels, 1)
        self.norm3 = BatchNorm2d(s.out_channels)

    @property
    def last_norm(self) -> nn.Module:
        """The norm whose weight of zero makes a block that adds its input an identity."""
        return self.norm3

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.expands:
            x = F.relu6(self.norm1(self.conv1(x)), inplace=True)
        x = F.relu6(self.norm2(self.conv2(x)), inplace=True)
        x = self.norm3(self.conv3(x))
        return x.add_(shortcut) if self.adds else x

    def initialize(self) -> None:
        initialize_convs(self)
