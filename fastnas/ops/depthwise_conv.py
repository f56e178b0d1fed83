"""Depthwise convolution (one filter per channel; MobileNets, Howard et al. 2017, section 3.1) that trains fast on the CPU.

Kernels: csrc/cpu/depthwise_conv*. Other devices use the library's convolution (on CUDA cuDNN's), and so does the forward pass
where that was measured to be the faster one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastnas.ops._autocast import cast, convolution_type
from fastnas.ops._layout import empty_like_layout, is_channels_last
from fastnas.ops._library import register_fake, require_library

Padding = int | tuple[int, int] | tuple[int, int, int, int] | str


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
) -> Tensor:
    """`torch.nn.functional.conv2d` with as many groups as channels: every channel has its own filter.

    On the CPU, for channels-last maps, the backward pass is our own, and so is the forward pass where borders differ (else it is
    ATen's, which was measured to be as fast or faster). Sums are fp32 (fp64 for fp64), ours the same bits for any number of
    threads. Other layouts (but for fp64) and other devices get `torch.nn.functional.conv2d`: on CUDA that is cuDNN's.

    Args:
        input: [N, C, H, W], fp32, fp64, fp16 or bf16, channels-last to be fast. Under autocast it is converted as for any
            convolution.
        weight: [C, 1, kh, kw] of any floating type. 3x3 and 5x5 with strides 1 and 2 are the fast kernels.
        bias: [C] of any floating type, or None.
        stride: one number or (vertical, horizontal).
        padding: zeros around the map: one number, (vertical, horizontal), (top, bottom, left, right), or "same" for
            TensorFlow's SAME: a side of ceil(side / stride), what has to be added to an odd number more right and below.

    Returns:
        [N, C, H', W'] in the type of `input` (or of autocast); channels-last where its channels are innermost, else contiguous.

    Raises:
        RuntimeError: wrong shapes, types, devices, stride or padding.
        FastnasError: the operators are not built.
    """
    _check(input, weight, bias)
    strides = _pair(stride, "stride")
    borders = _borders(input, weight, strides, padding)
    input = input.to(convolution_type(input))
    if input.device.type != "cpu" or (input.dtype != torch.float64 and not is_channels_last(input)):
        return _library_conv2d(input, weight, bias, strides, borders)
    require_library()
    # The autograd function stands outside the operator, so inference does not pay for it.
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, weight, bias)):
        return _DepthwiseConv2d.apply(input, weight, bias, strides, borders)
    return _forward(input, weight, bias, strides, borders)


class DepthwiseConv2d(nn.Conv2d):
    """`depthwise_conv2d` with its parameters; an `nn.Conv2d` of as many groups as channels, with its state dict.

    padding: as for `depthwise_conv2d`; "same" goes with every stride.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: Padding = 0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(channels, channels, kernel_size, stride, 0, 1, channels, bias, device=device, dtype=dtype)
        self.padding = (padding, padding) if isinstance(padding, int) else padding

    def forward(self, input: Tensor) -> Tensor:
        return depthwise_conv2d(input, self.weight, self.bias, self.stride, self.padding)


def _check(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """What the operator refuses and the library takes, or refuses without a name."""
    if input.dim() != 4:
        raise RuntimeError(f"input: expected [N, C, H, W], got {list(input.shape)}")
    channels = input.size(1)
    if weight.dim() != 4 or weight.shape[:2] != (channels, 1):
        raise RuntimeError(f"weight: expected [{channels}, 1, kh, kw], got {list(weight.shape)}")
    if bias is not None and bias.shape != (channels,):
        raise RuntimeError(f"bias: expected [{channels}], got {list(bias.shape)}")
    for name, values in (("input", input), ("weight", weight), ("bias", bias)):
        if values is not None and not values.is_floating_point():
            raise RuntimeError(f"{name}: expected fp32, fp64, fp16 or bf16, got {values.dtype}")


def _pair(values: int | tuple[int, int], name: str) -> list[int]:
    pair = [values, values] if isinstance(values, int) else list(values)
    if len(pair) != 2 or min(pair) < 1:
        raise RuntimeError(f"{name}: expected one or two positive numbers, got {values}")
    return pair


def _borders(input: Tensor, weight: Tensor, stride: list[int], padding: Padding) -> list[int]:
    """(top, bottom, left, right)"""
    if isinstance(padding, str):
        if padding != "same":
            raise RuntimeError(f'padding: expected numbers or "same", got "{padding}"')
        borders = []
        for side, kernel, step in zip(input.shape[2:], weight.shape[2:], stride, strict=True):
            added = max((-(-side // step) - 1) * step + kernel - side, 0)
            borders += [added // 2, added - added // 2]
        return borders
    if isinstance(padding, int):
        return [padding] * 4
    if len(padding) == 2:
        return [padding[0], padding[0], padding[1], padding[1]]
    if len(padding) != 4:
        raise RuntimeError(f"padding: expected one, two or four numbers, got {padding}")
    return list(padding)


def _library_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    top, bottom, left, right = padding
    if (top, left) != (bottom, right):
        input, top, left = F.pad(input, (left, right, top, bottom)), 0, 0
    return F.conv2d(input, weight.to(input.dtype), cast(bias, input.dtype), stride, (top, left), groups=input.size(1))


def _forward(input: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    symmetric = padding[0] == padding[1] and padding[2] == padding[3]
    if symmetric and input.dtype != torch.float64:  # the library is as fast or faster there, a copy with borders is not
        return _library_conv2d(input, weight, bias, stride, padding)
    return torch.ops.fastnas.depthwise_conv2d.default(input, weight, bias, stride, padding)


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
        ctx.stride, ctx.padding, ctx.bias_type = stride, padding, None if bias is None else bias.dtype
        ctx.save_for_backward(input, weight)
        return _forward(input, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        computed = torch.ops.fastnas.depthwise_conv2d_backward.default(grad, input, weight, ctx.stride, ctx.padding, wanted)
        gradients = [value if is_wanted else None for value, is_wanted in zip(computed, wanted, strict=True)]
        if wanted[2]:
            gradients[2] = gradients[2].to(ctx.bias_type)
        return *gradients, None, None


@register_fake("depthwise_conv2d")
def _depthwise_conv2d_shapes(input: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    height = (input.size(2) + padding[0] + padding[1] - weight.size(2)) // stride[0] + 1
    width = (input.size(3) + padding[2] + padding[3] - weight.size(3)) // stride[1] + 1
    return empty_like_layout(input, (input.size(0), input.size(1), height, width))


@register_fake("depthwise_conv2d_backward")
def _depthwise_conv2d_backward_shapes(
    grad: Tensor, input: Tensor, weight: Tensor, stride: list[int], padding: list[int], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        empty_like_layout(input, tuple(input.shape)) if wanted[0] else input.new_empty((0,)),
        weight.new_empty(tuple(weight.shape) if wanted[1] else (0,)),
        weight.new_empty((weight.size(0) if wanted[2] else 0,)),
    )
