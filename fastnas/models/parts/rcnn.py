"""Modules of the Faster R-CNN head (`fastnas.blueprint.parts.rcnn`)."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.ops import multiscale_roi_align


class RoiPool(nn.Module):
    """Levels and regions (K, 5) (image index, x1, y1, x2, y2 in input pixels) -> (K, C, s, s)."""

    def __init__(self, s: spec.RoiPool):
        super().__init__()
        self.spec = s

    def forward(self, *values: Tensor) -> Tensor:
        *levels, regions = values
        s = self.spec
        return multiscale_roi_align(list(levels), regions, s.resolution, list(s.strides), sampling_ratio=s.sampling)


class BoxHead(nn.Module):
    """Regions (K, C, s, s) -> class logits (K, classes + 1) and box deltas (K, 4 (classes + 1)); class 0 is the background."""

    def __init__(self, s: spec.BoxHead):
        super().__init__()
        self.fc6 = nn.Linear(s.channels * s.resolution**2, s.hidden)
        self.fc7 = nn.Linear(s.hidden, s.hidden)
        self.cls_score = nn.Linear(s.hidden, s.logits)
        self.bbox_pred = nn.Linear(s.hidden, 4 * s.logits)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.fc6(x.flatten(1)), inplace=True)
        x = F.relu(self.fc7(x), inplace=True)
        return self.cls_score(x), self.bbox_pred(x)

    def initialize(self) -> None:
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
