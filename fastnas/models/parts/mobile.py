"""Modules that MobileNetV2 and EfficientNet share (`fastnas.blueprint.parts.mobile`). Their own files say activation and
initialisation."""

from collections.abc import Callable
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.models.layers import BatchNorm2d, DepthwiseConv2d, conv, initialize_convs, strided, tf_batch_norm


def batch_norm(kind: str, channels: int) -> nn.BatchNorm2d:
    """kind: tf | torch, whose eps and momentum differ."""
    return tf_batch_norm(channels) if kind == "tf" else BatchNorm2d(channels)


class MobileStem(nn.Module):
    """Image (N, 3, H, W) -> (N, C, H/2, W/2)."""

    activation: ClassVar[Callable[..., Tensor]]

    def __init__(self, s: spec.Relu6Stem | spec.SiluStem):
        super().__init__()
        self.conv1 = strided(3, s.channels, 3, 2, s.padding)
        self.norm1 = batch_norm(s.norm, s.channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm1(self.conv1(x)), inplace=True)

    def initialize(self) -> None:
        initialize_convs(self)


class InvertedBottleneck(nn.Module):
    """(N, Cin, H, W) -> (N, Cout, H/stride, W/stride)."""

    activation: ClassVar[Callable[..., Tensor]]

    def __init__(self, s: spec.InvertedResidual | spec.MobileBlock):
        super().__init__()
        self.expands, self.squeezes, self.adds = s.expansion != 1, s.squeezed > 0, s.adds
        if self.expands:
            self.conv1 = conv(s.in_channels, s.width, 1)
            self.norm1 = batch_norm(s.norm, s.width)
        self.conv2 = DepthwiseConv2d(s.width, s.kernel, s.stride, s.padding)
        self.norm2 = batch_norm(s.norm, s.width)
        if self.squeezes:
            self.squeeze = conv(s.width, s.squeezed, 1, bias=True)
            self.excite = conv(s.squeezed, s.width, 1, bias=True)
        self.conv3 = conv(s.width, s.out_channels, 1)
        self.norm3 = batch_norm(s.norm, s.out_channels)

    @property
    def last_norm(self) -> nn.Module:
        """The norm whose weight of zero makes a block that adds its input an identity."""
        return self.norm3

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.expands:
            x = self.activation(self.norm1(self.conv1(x)), inplace=True)
        x = self.activation(self.norm2(self.conv2(x)), inplace=True)
        if self.squeezes:
            scale = F.silu(self.squeeze(x.mean((2, 3), keepdim=True)), inplace=True)
            x = x * self.excite(scale).sigmoid()
        x = self.norm3(self.conv3(x))
        return x.add_(shortcut) if self.adds else x

    def initialize(self) -> None:
        initialize_convs(self)
