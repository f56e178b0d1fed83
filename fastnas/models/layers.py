"""Layers that blocks of several parts are made of."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas import ops
from fastnas.blueprint import blocks as spec
from fastnas.ops import GroupNormAct, WSConv2d
from fastnas.ops.batch_norm import IN_PLACE


class Conv2d(nn.Conv2d):
    """A convolution whose weights the block that owns it initialises: PyTorch's own initialisation would be thrown away."""

    def reset_parameters(self) -> None:
        pass


class DepthwiseConv2d(ops.DepthwiseConv2d):
    """A depthwise convolution without bias, initialised by the block that owns it."""

    def __init__(self, channels: int, kernel: int, stride: int = 1, padding: str = "symmetric"):
        """padding: same | symmetric, which differ at stride 2 only."""
        super().__init__(channels, kernel, stride, "same" if padding == "same" else kernel // 2, bias=False)

    def reset_parameters(self) -> None:
        pass


class BatchNormAct(ops.BatchNormAct):
    """That of `fastnas.ops`, behind a convolution. Nothing is filled in on the meta device: it would take a third of the time of
    building a detector there."""

    def __init__(self, channels: int, activation: str = "none", eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(channels, eps, momentum, activation=activation, inplace=True)

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class StandardizedConv2d(WSConv2d):
    """A convolution with standardised weights as the authors of SM-NAS have them, initialised by the block that owns it."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options, convention="paper")

    def reset_parameters(self) -> None:
        pass


def conv(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False, norm: str = "none") -> nn.Conv2d:
    """norm: what stands behind it; gnws standardises the weights."""
    form = StandardizedConv2d if norm == "gnws" else Conv2d
    return form(cin, cout, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)


class AddAct(nn.Module):
    """Addition of a residual and activation, both written into `x`: what a `BatchNormAct` does besides, once its norm is folded
    into a convolution."""

    def __init__(self, activation: str):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is not None:
            x += residual  # a map of its own, not yet in the cache, would cost more than the addition
        return IN_PLACE[self.activation](x)


def make_norm(kind: str, channels: int, activation: str = "none", most: int = 32) -> nn.Module:
    """forward(x, residual=None) -> activation(norm(x) + residual); "none" or "relu". Keys of the state dict are torch's.

    kind, most: bn, or as for `fastnas.blueprint.blocks.norm_groups`.
    """
    if kind == "bn":
        return BatchNormAct(channels, activation)
    return GroupNormAct(spec.norm_groups(kind, channels, most), channels, activation=activation)


class ConvNorm(nn.Module):
    """A convolution without bias and the norm behind it; `most`: as for `make_norm`."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, norm: str, most: int = 32):
        super().__init__()
        self.conv = conv(cin, cout, kernel, stride, norm=norm)
        self.norm = make_norm(norm, cout, most=most)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def tf_batch_norm(channels: int, activation: str = "none") -> BatchNormAct:
    """With EfficientNet's and EfficientDet's eps and momentum (in PyTorch's sense, 1 - decay)."""
    return BatchNormAct(channels, activation, eps=1e-3, momentum=0.01)


class SameConv2d(Conv2d):
    """A strided convolution that pads as TensorFlow's SAME: what is needed in all, the larger half right and below."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int):
        super().__init__(cin, cout, kernel, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, self.kernel_size[0], self.stride[0]))


def strided(cin: int, cout: int, kernel: int, stride: int, padding: str) -> Conv2d:
    """A convolution without bias. padding: same | symmetric, which differ at stride 2 only."""
    return SameConv2d(cin, cout, kernel, stride) if padding == "same" and stride > 1 else conv(cin, cout, kernel, stride)


def pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """x (N, C, H, W) with the border that TensorFlow's SAME adds for a window of this kernel and stride."""
    height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)


def max_pool(x: Tensor, padding: str) -> Tensor:
    """Max-pool 3x3/2; sides are rounded up. padding: same | symmetric."""
    if padding == "symmetric":
        return F.max_pool2d(x, 3, stride=2, padding=1)
    return F.max_pool2d(pad_same(x, 3, 2, value=-torch.inf), 3, stride=2)


def initialize_convs(module: nn.Module) -> None:
    """He et al. 2015, fan out, for every convolution below `module`; biases zero."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
            if child.bias is not None:
                nn.init.zeros_(child.bias)
