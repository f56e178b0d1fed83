"""Modules of heads on regions (`fastnas.blueprint.parts.rcnn`, `fastnas.blueprint.parts.cascade`)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.models.boxes import clip, decode
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
    """Regions (K, C, s, s) -> class logits (K, classes + 1), class 0 is the background, and box deltas (K, 4 (classes + 1)), or
    (K, 4) for all classes together."""

    def __init__(self, s: spec.BoxHead):
        super().__init__()
        self.fc6 = nn.Linear(s.channels * s.resolution**2, s.hidden)
        self.fc7 = nn.Linear(s.hidden, s.hidden)
        self.cls_score = nn.Linear(s.hidden, s.logits)
        self.bbox_pred = nn.Linear(s.hidden, s.deltas)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.fc6(x.flatten(1)), inplace=True)
        x = F.relu(self.fc7(x), inplace=True)
        return self.cls_score(x), self.bbox_pred(x)

    def initialize(self) -> None:
        initialize_predictors(self.cls_score, self.bbox_pred)


class RegionPredictor(nn.Module):
    """Regions (K, C, s, s) -> class logits (K, classes + 1), class 0 is the background, and box deltas (K, 4 classes)."""

    def __init__(self, s: spec.RegionPredictor):
        super().__init__()
        self.cls_score = nn.Linear(s.channels, s.logits)
        self.bbox_pred = nn.Linear(s.channels, 4 * (s.logits - 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.mean((2, 3))
        return self.cls_score(x), self.bbox_pred(x)

    def initialize(self) -> None:
        initialize_predictors(self.cls_score, self.bbox_pred)


def initialize_predictors(classes: nn.Linear, deltas: nn.Linear) -> None:
    for layer, std in ((classes, 0.01), (deltas, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)


class Refine(nn.Module):
    """Boxes (K, 4), or (K, 5) with the image index first, and deltas (K, 4) -> boxes inside the image, in the same form."""

    def __init__(self, s: spec.Refine):
        super().__init__()
        self.spec = s

    def forward(self, boxes: Tensor, deltas: Tensor) -> Tensor:
        refined = clip(decode(deltas, boxes[:, -4:], self.spec.weights), self.spec.input)
        return torch.cat([boxes[:, :-4], refined], 1)
