"""Modules of MobileNetV2 (`fastnas.blueprint.parts.mobilenet`)."""

import torch.nn.functional as F

from fastnas.models.parts.mobile import InvertedBottleneck, MobileStem


class Relu6Stem(MobileStem):
    activation = staticmethod(F.relu6)


class InvertedResidual(InvertedBottleneck):
    activation = staticmethod(F.relu6)
