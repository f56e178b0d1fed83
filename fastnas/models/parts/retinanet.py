"""Modules of RetinaNet's heads (`fastnas.blueprint.parts.retinanet`)."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.models.layers import conv, make_norm
from fastnas.models.parts.effdet import PRIOR


class ConvTower(nn.Module):
    """P_l (N, C, H, W) -> class or box map (N, out, H, W), anchor-major. `use`: which level, from the finest; chooses the norms."""

    def __init__(self, s: spec.ConvTower):
        super().__init__()
        self.predicts = s.predicts
        self.convs = nn.ModuleList(
            conv(s.channels, s.channels, 3, bias=s.norm == "none", norm=s.norm) for _ in range(s.convs)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(make_norm(s.norm, s.channels, "relu") for _ in range(s.norms)) for _ in range(s.convs)
        )
        self.predictor = conv(s.channels, s.out_channels, 3, bias=True)

    def forward(self, x: Tensor, use: int = 0) -> Tensor:
        for layer, norms in zip(self.convs, self.norms, strict=True):
            x = layer(x)
            x = norms[use % len(norms)](x) if norms else F.relu(x, inplace=True)
        return self.predictor(x)

    def at(self, use: int) -> nn.Module:
        """What one use computes, with the same weights. Convolutions are `conv<i>`, their norms `norm<i>`, for folding."""
        level = nn.Sequential()
        for index, (layer, norms) in enumerate(zip(self.convs, self.norms, strict=True)):
            level.add_module(f"conv{index}", layer)
            level.add_module(f"norm{index}", norms[use % len(norms)] if norms else nn.ReLU(inplace=True))
        level.add_module("predictor", self.predictor)
        return level

    def initialize(self) -> None:
        for layer in (*self.convs, self.predictor):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if self.predicts == "classes":
            nn.init.constant_(self.predictor.bias, -math.log((1 - PRIOR) / PRIOR))
