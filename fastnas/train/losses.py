"""Losses of a batch, for every kind of detector. A new head registers in LOSSES."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastnas.blueprint import C4Head, CascadeHead, EffdetHead, RetinaHead, RoiHead
from fastnas.models.detector import Detector
from fastnas.train.config import Sampling
from fastnas.train.efficientdet import efficientdet_losses
from fastnas.train.retinanet import retinanet_losses
from fastnas.train.two_stage import two_stage_losses

LOSSES: dict[type, Callable[..., dict[str, Tensor]]] = {
    RoiHead: two_stage_losses,
    CascadeHead: two_stage_losses,
    C4Head: two_stage_losses,
    RetinaHead: retinanet_losses,
    EffdetHead: efficientdet_losses,
}


def detection_losses(
    detector: Detector, images: Tensor, targets: list, sampling: Sampling, rng: torch.Generator
) -> dict[str, Tensor]:
    """Losses of a batch. images (N, 3, H, W) normalized; a target has boxes (n, 4), labels (n,) from 1, ignore (m, 4).

    sampling, rng: which anchors and regions contribute, in a two-stage detector.
    """
    return LOSSES[type(detector.network.blueprint.head)](detector, images, targets, sampling, rng)
