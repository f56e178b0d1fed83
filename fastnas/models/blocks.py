"""Specs -> modules: one nn.Module for every kind of block that has weights or maps features.

A module takes and returns tensors in the order of its block's inputs and outputs. Feature maps are NCHW, best in channels-last.
Parameter names follow torchvision's (conv1, bn -> norm1, downsample, fc6, cls_score, ...), so that its weights are easy to map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.blueprint import blocks as spec
from fastnas.ops import GroupNormAct, multiscale_roi_align


class BatchNormAct(nn.BatchNorm2d):
    """Batch norm, addition of a residual and relu in one module, so that blocks read the same for both kinds of norm."""

    def __init__(self, channels: int, activation: str):
        super().__init__(channels)
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        x = super().forward(input)
        if residual is not None:
            x = x + residual
        return F.relu(x, inplace=True) if self.activation == "relu" else x


def make_norm(kind: str, channels: int, activation: str = "none") -> nn.Module:
    """forward(x, residual=None) -> activation(norm(x) + residual); "none" or "relu". Keys of the state dict are torch's."""
    if kind == "bn":
        return BatchNormAct(channels, activation)
    return GroupNormAct(spec.gn_groups(channels), channels, activation=activation)


def conv(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)


class Stem(nn.Module):
    """Image (N, 3, H, W) -> (N, C, H/4, W/4)."""

    def __init__(self, s: spec.Stem):
        super().__init__()
        self.pools = s.kind == "7x7"
        middle = s.channels if self.pools else s.channels // 2
        self.conv1 = conv(3, middle, 7 if self.pools else 3, stride=2)
        self.norm1 = make_norm(s.norm, middle, "relu")
        if not self.pools:
            self.conv2 = conv(middle, s.channels, 3, stride=2)
            self.norm2 = make_norm(s.norm, s.channels, "relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x))
        if self.pools:
            return F.max_pool2d(x, 3, stride=2, padding=1)
        return self.norm2(self.conv2(x))


class Projection(nn.Module):
    """1x1 convolution and norm on the shortcut, where a block changes shape."""

    def __init__(self, cin: int, cout: int, stride: int, norm: str):
        super().__init__()
        self.conv = conv(cin, cout, 1, stride)
        self.norm = make_norm(norm, cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Residual(nn.Module):
    """basic, bottleneck and resnext32x4d blocks: (N, Cin, H, W) -> (N, Cout, H/stride, W/stride)."""

    def __init__(self, s: spec.Residual):
        super().__init__()
        convs = s.convs()[:-1] if s.projects else s.convs()
        strided = 0 if s.kind == "basic" else 1  # the 3x3 convolution that carries the stride
        self.depth = len(convs)
        for index, (cin, cout, kernel, groups, _) in enumerate(convs):
            self.add_module(f"conv{index + 1}", conv(cin, cout, kernel, s.stride if index == strided else 1, groups))
            self.add_module(f"norm{index + 1}", make_norm(s.norm, cout, "relu"))
        self.downsample = Projection(s.in_channels, s.out_channels, s.stride, s.norm) if s.projects else None

    @property
    def last_norm(self) -> nn.Module:
        """The norm whose weight of zero makes the block an identity (behind its shortcut)."""
        return getattr(self, f"norm{self.depth}")

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for index in range(1, self.depth):
            x = getattr(self, f"norm{index}")(getattr(self, f"conv{index}")(x))
        return self.last_norm(getattr(self, f"conv{self.depth}")(x), shortcut)


class FpnLevel(nn.Module):
    """C_l (and the merged map of level l+1) -> P_l (and the merged map of this level)."""

    def __init__(self, s: spec.FpnLevel):
        super().__init__()
        self.feeds = s.feeds
        self.lateral = conv(s.in_channels, s.channels, 1, bias=True)
        self.output = conv(s.channels, s.channels, 3, bias=True)

    def forward(self, x: Tensor, coarser: Tensor | None = None):
        merged = self.lateral(x)
        if coarser is not None:
            merged = merged + F.interpolate(coarser, size=merged.shape[-2:], mode="nearest")
        return (self.output(merged), merged) if self.feeds else self.output(merged)


class MaxPoolLevel(nn.Module):
    """P_l -> P_{l+1} by taking every second pixel."""

    def __init__(self, s: spec.MaxPoolLevel):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 1, stride=2)


class RpnHead(nn.Module):
    """P_l -> objectness (N, A, H, W) and box deltas (N, 4A, H, W), anchor-major."""

    def __init__(self, s: spec.RpnHead):
        super().__init__()
        self.conv = conv(s.channels, s.channels, 3, bias=True)
        self.cls_logits = conv(s.channels, s.anchors, 1, bias=True)
        self.bbox_pred = conv(s.channels, 4 * s.anchors, 1, bias=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.conv(x), inplace=True)
        return self.cls_logits(x), self.bbox_pred(x)


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
    """Regions (K, C, s, s) -> class logits (K, classes + 1) and box deltas (K, 4 (classes + 1)); class 0 is the background."""

    def __init__(self, s: spec.BoxHead):
        super().__init__()
        self.fc6 = nn.Linear(s.channels * s.resolution**2, s.hidden)
        self.fc7 = nn.Linear(s.hidden, s.hidden)
        self.cls_score = nn.Linear(s.hidden, s.logits)
        self.bbox_pred = nn.Linear(s.hidden, 4 * s.logits)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.fc6(x.flatten(1)), inplace=True)
        x = F.relu(self.fc7(x), inplace=True)
        return self.cls_score(x), self.bbox_pred(x)


MODULES: dict[type[spec.Spec], type[nn.Module]] = {
    spec.Stem: Stem,
    spec.Residual: Residual,
    spec.FpnLevel: FpnLevel,
    spec.MaxPoolLevel: MaxPoolLevel,
    spec.RpnHead: RpnHead,
    spec.RoiPool: RoiPool,
    spec.BoxHead: BoxHead,
}


def initialize(module: nn.Module) -> None:
    """Fresh weights: He for the backbone's convolutions, zero for the last norm of every residual block that has no projection
    (the network starts shallow: Goyal et al. 2017), normal 0.01 / 0.001 for the predictors, Xavier-like for the rest."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d):
            if child.bias is None:
                nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, RpnHead):
                nn.init.normal_(child.weight, std=0.01)
                nn.init.zeros_(child.bias)
            else:
                nn.init.kaiming_uniform_(child.weight, a=1)
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Linear) and name in ("cls_score", "bbox_pred"):
            nn.init.normal_(child.weight, std=0.01 if name == "cls_score" else 0.001)
            nn.init.zeros_(child.bias)
    if isinstance(module, Residual) and module.downsample is None:
        nn.init.zeros_(module.last_norm.weight)


def build_block(s: spec.Spec) -> nn.Module | None:
    """The initialized module of a spec, or None for a block that has neither weights nor features (boxes in, boxes out)."""
    if type(s) not in MODULES:
        return None
    module = MODULES[type(s)](s)
    if not next((p.is_meta for p in module.parameters()), True):
        with torch.no_grad():
            initialize(module)
    return module
