"""Modules of guided anchoring (`fastnas.blueprint.parts.guided`)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from fastnas.blueprint import blocks as spec
from fastnas.models.layers import conv

PRIOR = 0.01  # probability of an object at every cell at the start


class GuidedHead(nn.Module):
    """P_l -> location (N, 1, H, W), shape (N, 2, H, W), objectness (N, 1, H, W) and box deltas (N, 4, H, W)."""

    def __init__(self, s: spec.GuidedHead):
        super().__init__()
        self.conv = conv(s.channels, s.channels, 3, bias=True)
        self.location = conv(s.channels, 1, 1, bias=True)
        self.shape = conv(s.channels, 2, 1, bias=True)
        self.offset = conv(2, s.offsets, 1)
        self.adaption = conv(s.channels, s.channels, 3)
        self.cls_logits = conv(s.channels, 1, 1, bias=True)
        self.bbox_pred = conv(s.channels, 4, 1, bias=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = F.relu(self.conv(x), inplace=True)
        location, shape = self.location(x), self.shape(x)
        wide = x.float() if x.dtype == torch.bfloat16 else x  # torchvision has no kernel for bfloat16
        offset, weight = self.offset(shape.detach()).to(wide.dtype), self.adaption.weight.to(wide.dtype)
        x = F.relu(deform_conv2d(wide, offset, weight, padding=1).to(x.dtype), inplace=True)
        return location, shape, self.cls_logits(x), self.bbox_pred(x)

    def initialize(self) -> None:
        for layer in self.children():
            nn.init.normal_(layer.weight, std=0.1 if layer is self.offset else 0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        nn.init.constant_(self.location.bias, -math.log((1 - PRIOR) / PRIOR))
