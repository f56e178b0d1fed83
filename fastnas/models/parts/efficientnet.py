"""Modules of EfficientNet (`fastnas.blueprint.parts.efficientnet`)."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.models.layers import BatchNorm2d, conv, initialize_convs, strided, tf_batch_norm


def batch_norm(kind: str, channels: int) -> nn.BatchNorm2d:
    """kind: tf | torch, whose eps and momentum differ."""
    return tf_batch_norm(channels) if kind == "tf" else BatchNorm2d(channels)


class SiluStem(nn.Module):
    """Image (N, 3, H, W) -> (N, C, H/2, W/2)."""

    def __init__(self, s: spec.SiluStem):
        super().__init__()
        self.conv1 = strided(3, s.channels, 3, 2, 1, s.padding)
        self.norm1 = batch_norm(s.norm, s.channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm1(self.conv1(x)), inplace=True)

    def initialize(self) -> None:
        initialize_efficientnet(self)


class MobileBlock(nn.Module):
    """(N, Cin, H, W) -> (N, Cout, H/stride, W/stride)."""

    def __init__(self, s: spec.MobileBlock):
        super().__init__()
        self.expands, self.adds = s.expansion != 1, s.adds
        if self.expands:
            self.conv1 = conv(s.in_channels, s.width, 1)
            self.norm1 = batch_norm(s.norm, s.width)
        self.conv2 = strided(s.width, s.width, s.kernel, s.stride, s.width, s.padding)
        self.norm2 = batch_norm(s.norm, s.width)
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
            x = F.silu(self.norm1(self.conv1(x)), inplace=True)
        x = F.silu(self.norm2(self.conv2(x)), inplace=True)
        scale = F.silu(self.squeeze(x.mean((2, 3), keepdim=True)), inplace=True)
        x = x * self.excite(scale).sigmoid()
        x = self.norm3(self.conv3(x))
        return x.add_(shortcut) if self.adds else x

    def initialize(self) -> None:
        initialize_efficientnet(self)


def initialize_efficientnet(module: nn.Module) -> None:
    """The authors' initialisation: normal with variance 2 / fan out, where the fan of a depthwise convolution is one filter."""
    initialize_convs(module)  # of a depthwise convolution PyTorch takes all channels as fan
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and child.groups > 1:
            nn.init.normal_(child.weight, std=(2 / child.weight[0].numel()) ** 0.5)
