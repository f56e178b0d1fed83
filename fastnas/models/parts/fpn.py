"""Modules of the feature pyramid (`fastnas.blueprint.parts.fpn`)."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.models.layers import conv


class FpnLevel(nn.Module):
    """C_l (and the merged map of level l+1) -> P_l (and the merged map of this level)."""

    def __init__(self, s: spec.FpnLevel):
        super().__init__()
        self.feeds = s.feeds
        self.lateral = conv(s.in_channels, s.channels, 1, bias=True)
        self.output = conv(s.channels, s.channels, 3, bias=True)

    def forward(self, x: Tensor, coarser: Tensor | None = None):
        merged = self.lateral(x)
        if coarser is not None:
            merged = merged + F.interpolate(coarser, size=merged.shape[-2:], mode="nearest")
        return (self.output(merged), merged) if self.feeds else self.output(merged)

    def initialize(self) -> None:
        for layer in (self.lateral, self.output):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)


class MaxPoolLevel(nn.Module):
    """P_l -> P_{l+1} by taking every second pixel."""

    def __init__(self, s: spec.MaxPoolLevel):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 1, stride=2)
