"""Modules of EfficientNet (`fastnas.blueprint.parts.efficientnet`)."""

from torch import nn

from fastnas.models.layers import initialize_convs
from fastnas.models.parts.mobile import InvertedBottleneck, MobileStem


class SiluStem(MobileStem):
    activation = "silu"

    def initialize(self) -> None:
        initialize_efficientnet(self)


class MobileBlock(InvertedBottleneck):
    activation = "silu"

    def initialize(self) -> None:
        initialize_efficientnet(self)


def initialize_efficientnet(module: nn.Module) -> None:
    """The authors' initialisation: normal with variance 2 / fan out, where the fan of a depthwise convolution is one filter."""
    initialize_convs(module)  # of a depthwise convolution PyTorch takes all channels as fan
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and child.groups > 1:
            nn.init.normal_(child.weight, std=(2 / child.weight[0].numel()) ** 0.5)
