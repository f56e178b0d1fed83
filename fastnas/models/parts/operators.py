"""Modules of single layers (`fastnas.blueprint.operators`): what an isolated-operator table measures."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.blueprint import operators as spec
from fastnas.blueprint.spec import norm_groups
from fastnas.models.layers import conv, initialize_convs
from fastnas.ops import GroupNormAct, weighted_fusion

ACTIVATIONS = {"": lambda x: x, "relu": F.relu, "silu": F.silu, "sigmoid": F.sigmoid}


class Conv(nn.Module):
    """(N, Cin, H, W), and what is added to the result -> (N, Cout, H/stride, W/stride)."""

    def __init__(self, s: spec.Conv):
        super().__init__()
        self.conv = conv(s.in_channels, s.out_channels, s.kernel, s.stride, s.groups, bias=True)
        self.activation = ACTIVATIONS[s.activation]

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        x = self.conv(x)
        return self.activation(x if added is None else x + added)

    def initialize(self) -> None:
        initialize_convs(self)


class Linear(nn.Module):
    """(R, ...) -> (R, out)."""

    def __init__(self, s: spec.Linear):
        super().__init__()
        self.linear = nn.Linear(s.in_features, s.out_features)
        self.activation = ACTIVATIONS[s.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x.flatten(1)))

    def initialize(self) -> None:
        pass


class Pass(nn.Module):
    """A layer that passes over its inputs once."""

    def __init__(self, s: spec.Pass):
        super().__init__()
        self.kind, self.size, self.kernel = s.kind, s.output[2:], s.kernel
        self.activation, channels = s.activation or "none", s.output[1]
        groups = norm_groups("gn", channels)
        self.norm = GroupNormAct(groups, channels, activation=self.activation) if s.kind == "group-norm" else None

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        if self.kind == "group-norm":
            return self.norm(x, *others)
        if self.kind == "max-pool":
            return F.max_pool2d(x, self.kernel, stride=2, padding=self.kernel // 2)
        if self.kind == "mean":
            return x.mean((2, 3), keepdim=True)
        if self.kind == "scale":
            return x * others[0]
        if self.kind == "upsample":
            return F.interpolate(x, self.size, mode="nearest")
        equal = x.new_zeros(1 + len(others))  # softmax of it: every map has the same share
        return weighted_fusion([x, *others], equal, self.size, method="softmax", activation=self.activation)

    def initialize(self) -> None:
        pass
