"""Modules of MobileNetV2 (`fastnas.blueprint.parts.mobilenet`)."""

from fastnas.models.parts.mobile import InvertedBottleneck, MobileStem


class Relu6Stem(MobileStem):
    activation = "relu6"


class InvertedResidual(InvertedBottleneck):
    activation = "relu6"
