"""Module of the parallel backbone (`fastnas.blueprint.parts.parallel`)."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.models.layers import ConvNorm, initialize_convs


class Connector(nn.Module):
    """A map (N, C, H, W) and the output of a copy (N, Cout, H/s, W/s) -> their sum (N, C, H, W)."""

    def __init__(self, s: spec.Connector):
        super().__init__()
        self.feedback = ConvNorm(s.in_channels, s.channels, 1, 1, s.norm, s.groups)

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        return x + F.interpolate(self.feedback(output), size=x.shape[-2:], mode="nearest")

    def initialize(self) -> None:
        initialize_convs(self)
