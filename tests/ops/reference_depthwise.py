"""Depthwise convolution in float64 and plain loops, written to be read, not to be fast."""

import torch
from torch import Tensor


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Tensor:
    """padding: (top, bottom, left, right). Differentiable by autograd."""
    top, bottom, left, right = padding
    images, channels, height, width = input.shape
    padded = torch.zeros(images, channels, height + top + bottom, width + left + right, dtype=torch.float64)
    padded[:, :, top : top + height, left : left + width] = input.double()
    kernel = weight.shape[2:]
    sides = [(side - size) // step + 1 for side, size, step in zip(padded.shape[2:], kernel, stride, strict=True)]
    rows = []
    for y in range(sides[0]):
        for x in range(sides[1]):
            corner = y * stride[0], x * stride[1]
            window = padded[:, :, corner[0] : corner[0] + kernel[0], corner[1] : corner[1] + kernel[1]]
            rows.append((window * weight.double()[:, 0]).sum((2, 3)))
    result = torch.stack(rows, -1).reshape(images, channels, *sides)
    return result if bias is None else result + bias.double()[:, None, None]
