"""Modules of EfficientDet's heads (`fastnas.blueprint.parts.effdet`)."""

import math

from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.models.layers import DepthwiseConv2d, conv, tf_batch_norm

PRIOR = 0.01  # probability of every class at the start (Lin et al. 2017, section 4.1)


class HeadTower(nn.Module):
    """P_l (N, C, H, W) -> class or box map (N, out, H, W), anchor-major. `use`: which level, from the finest; chooses the norms."""

    def __init__(self, s: spec.HeadTower):
        super().__init__()
        self.predicts = s.predicts
        *repeated, (last, out) = s.layers()
        bias = s.bias == "yes"
        self.depthwise = nn.ModuleList(DepthwiseConv2d(cin, 3) for cin, _ in s.layers())
        self.pointwise = nn.ModuleList(conv(cin, cout, 1, bias=bias) for cin, cout in repeated)
        self.pointwise.append(conv(last, out, 1, bias=True))
        self.norms = nn.ModuleList(
            nn.ModuleList(tf_batch_norm(cout, "silu") for _ in range(s.levels)) for _, cout in repeated
        )

    def forward(self, x: Tensor, use: int = 0) -> Tensor:
        for depthwise, pointwise, norms in zip(self.depthwise, self.pointwise, self.norms, strict=False):
            x = norms[use](pointwise(depthwise(x)))
        return self.pointwise[-1](self.depthwise[-1](x))

    def at(self, use: int) -> "LevelTower":
        """What one use computes, with the same weights."""
        return LevelTower(self, use)

    def initialize(self) -> None:
        """Normal with variance 1 / fan in (the authors'); every class starts with the probability PRIOR."""
        for child in (*self.depthwise, *self.pointwise):
            nn.init.normal_(child.weight, std=child.weight[0].numel() ** -0.5)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        if self.predicts == "classes":
            nn.init.constant_(self.pointwise[-1].bias, -math.log((1 - PRIOR) / PRIOR))


class LevelTower(nn.Module):
    """A tower as one level uses it. Convolutions before a norm are `conv<i>`, their norms `norm<i>`, so that they can be folded."""

    def __init__(self, tower: HeadTower, use: int):
        super().__init__()
        self.repeats = len(tower.norms)
        for index, (depthwise, pointwise) in enumerate(zip(tower.depthwise, tower.pointwise, strict=True)):
            self.add_module(f"depthwise{index}", depthwise)
            self.add_module(f"conv{index}", pointwise)
            if index < self.repeats:
                self.add_module(f"norm{index}", tower.norms[index][use])

    def forward(self, x: Tensor) -> Tensor:
        for index in range(self.repeats + 1):
            x = getattr(self, f"conv{index}")(getattr(self, f"depthwise{index}")(x))
            if index < self.repeats:
                x = getattr(self, f"norm{index}")(x)
        return x
