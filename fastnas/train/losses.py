"""Losses of a batch, for every form of detector."""

import torch
from torch import Tensor

from fastnas.models.detector import Detector
from fastnas.models.one_stage import OneStageDetector
from fastnas.train.config import Sampling
from fastnas.train.one_stage import one_stage_losses
from fastnas.train.two_stage import two_stage_losses


def detection_losses(
    detector: Detector, images: Tensor, targets: list, sampling: Sampling, rng: torch.Generator
) -> dict[str, Tensor]:
    """Losses of a batch. images (N, 3, H, W) normalized; a target has boxes (n, 4), labels (n,) from 1, ignore (m, 4).

    sampling, rng: which anchors and regions contribute, in a two-stage detector.
    """
    if isinstance(detector, OneStageDetector):
        return one_stage_losses(detector, images, targets)
    return two_stage_losses(detector, images, targets, sampling, rng)
