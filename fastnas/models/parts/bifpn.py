"""Modules of BiFPN (`fastnas.blueprint.parts.bifpn`)."""

import torch
from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.models.layers import DepthwiseConv2d, conv, max_pool, tf_batch_norm
from fastnas.ops import weighted_fusion


class ProjectedEdge(nn.Module):
    """1x1 convolution and batch norm of an input that has other channels than the neck."""

    def __init__(self, cin: int, cout: int, bias: bool):
        super().__init__()
        self.conv = conv(cin, cout, 1, bias=bias)
        self.norm = tf_batch_norm(cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class CoarserLevel(nn.Module):
    """P_l (N, Cin, H, W) -> P_{l+1} (N, C, H/2, W/2)."""

    def __init__(self, s: spec.CoarserLevel):
        super().__init__()
        self.padding = s.padding
        self.edge = ProjectedEdge(s.in_channels, s.channels, s.bias == "yes") if s.projects else None

    def forward(self, x: Tensor) -> Tensor:
        return max_pool(x if self.edge is None else self.edge(x), self.padding)

    def initialize(self) -> None:
        glorot(self)


class FusionNode(nn.Module):
    """Maps of this and neighbouring levels -> the node's map, of the size of the first."""

    def __init__(self, s: spec.FusionNode):
        super().__init__()
        self.method, self.padding, self.projected = s.method, s.padding, s.projected
        for index in s.projected:
            self.add_module(f"edge{index}", ProjectedEdge(s.in_channels[index], s.channels, s.bias == "yes"))
        self.weights = nn.Parameter(torch.ones(s.weights)) if s.weights else None
        self.depthwise = DepthwiseConv2d(s.channels, 3)
        self.conv = conv(s.channels, s.channels, 1, bias=s.bias == "yes")
        self.norm = tf_batch_norm(s.channels)

    def forward(self, *inputs: Tensor) -> Tensor:
        size = tuple(inputs[0].shape[-2:])
        maps = [getattr(self, f"edge{index}")(x) if index in self.projected else x for index, x in enumerate(inputs)]
        fused = weighted_fusion(maps, self.weights, size, method=self.method, activation="silu", padding=self.padding)
        return self.norm(self.conv(self.depthwise(fused)))

    def initialize(self) -> None:
        glorot(self)


def glorot(module: nn.Module) -> None:
    """The authors' initialisation of the neck: Glorot & Bengio 2010, uniform; biases zero."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            fan = child.weight[0, 0].numel() * (child.weight.shape[0] // child.groups + child.weight.shape[1])
            limit = (6 / fan) ** 0.5
            nn.init.uniform_(child.weight, -limit, limit)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
