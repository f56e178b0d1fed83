"""Modules of the region proposal network (`fastnas.blueprint.parts.rpn`)."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.models.layers import conv


class RpnHead(nn.Module):
    """P_l -> objectness (N, A, H, W) and box deltas (N, 4A, H, W), anchor-major."""

    def __init__(self, s: spec.RpnHead):
        super().__init__()
        self.conv = conv(s.channels, s.channels, 3, bias=True)
        self.cls_logits = conv(s.channels, s.anchors, 1, bias=True)
        self.bbox_pred = conv(s.channels, 4 * s.anchors, 1, bias=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.conv(x), inplace=True)
        return self.cls_logits(x), self.bbox_pred(x)

    def initialize(self) -> None:
        for layer in (self.conv, self.cls_logits, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
