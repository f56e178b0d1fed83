"""Modules that MobileNetV2 and EfficientNet share (`fastnas.blueprint.parts.mobile`). Their own files say activation and
initialisation."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.models.layers import BatchNormAct, DepthwiseConv2d, conv, initialize_convs, strided, tf_batch_norm


def batch_norm(kind: str, channels: int, activation: str = "none") -> BatchNormAct:
    """kind: tf | torch, whose eps and momentum differ."""
    return tf_batch_norm(channels, activation) if kind == "tf" else BatchNormAct(channels, activation)


class MobileStem(nn.Module):
    """Image (N, 3, H, W) -> (N, C, H/2, W/2)."""

    activation: ClassVar[str]  # of `BatchNormAct`

    def __init__(self, s: spec.Relu6Stem | spec.SiluStem):
        super().__init__()
        self.conv1 = strided(3, s.channels, 3, 2, s.padding)
        self.norm1 = batch_norm(s.norm, s.channels, self.activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm1(self.conv1(x))

    def initialize(self) -> None:
        initialize_convs(self)


class InvertedBottleneck(nn.Module):
    """(N, Cin, H, W) -> (N, Cout, H/stride, W/stride)."""

    activation: ClassVar[str]  # of `BatchNormAct`

    def __init__(self, s: spec.InvertedResidual | spec.MobileBlock):
        super().__init__()
        self.expands, self.squeezes, self.adds = s.expansion != 1, s.squeezed > 0, s.adds
        if self.expands:
            self.conv1 = conv(s.in_channels, s.width, 1)
            self.norm1 = batch_norm(s.norm, s.width, self.activation)
        self.conv2 = DepthwiseConv2d(s.width, s.kernel, s.stride, s.padding)
        self.norm2 = batch_norm(s.norm, s.width, self.activation)
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
            x = self.norm1(self.conv1(x))
        x = self.norm2(self.conv2(x))
        if self.squeezes:
            scale = F.silu(self.squeeze(x.mean((2, 3), keepdim=True)), inplace=True)
            x = x * self.excite(scale).sigmoid()
        return self.norm3(self.conv3(x), shortcut if self.adds else None)

    def initialize(self) -> None:
        initialize_convs(self)
