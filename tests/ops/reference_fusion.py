"""Weighted fusion of a BiFPN node in float64 and plain loops, written to be read. Differentiable by autograd."""

import math

import torch
from torch import Tensor


def nearest_up(cells: Tensor, height: int, width: int) -> Tensor:
    """[N, C, height, width]: every fine cell copies the coarse cell below it (F.interpolate, mode "nearest")."""
    rows = [y * cells.shape[2] // height for y in range(height)]
    columns = [x * cells.shape[3] // width for x in range(width)]
    return cells[:, :, rows][:, :, :, columns]


def pool_down(cells: Tensor, padding: str) -> Tensor:
    """Maximum over 3x3 cells at every other cell. The gradient goes to the first maximum of a window, in reading order;
    where there is NaN, to the last one."""
    _, _, height, width = cells.shape
    out_height, out_width = math.ceil(height / 2), math.ceil(width / 2)

    def before(size: int) -> int:
        # TensorFlow's SAME: all that is needed, ceil(size / 2) * 2 + 1 - size, with the odd one behind; torch: always one.
        return 1 if padding == "symmetric" else ((math.ceil(size / 2) * 2 + 1 - size) // 2)

    result = []
    for y in range(out_height):
        row = []
        for x in range(out_width):
            top, left = 2 * y - before(height), 2 * x - before(width)
            window = [
                cells[:, :, i, j]
                for i in range(max(top, 0), min(top + 3, height))
                for j in range(max(left, 0), min(left + 3, width))
            ]
            best = window[0]
            for value in window[1:]:
                best = torch.where((value > best) | value.isnan(), value, best)
            row.append(best)
        result.append(torch.stack(row, -1))
    return torch.stack(result, -2)


def weighted_fusion(
    inputs: list[Tensor],
    weights: Tensor | None,
    size: tuple[int, int],
    method: str = "fast",
    activation: str = "none",
    eps: float = 1e-4,
    padding: str = "same",
) -> Tensor:
    """EfficientDet (Tan et al. 2020), section 3.3."""
    if method == "fast":
        shares = weights.clamp(min=0) / (weights.clamp(min=0).sum() + eps)
    elif method == "softmax":
        shares = weights.exp() / weights.exp().sum()
    else:
        shares = torch.ones(len(inputs), dtype=inputs[0].dtype)
    total = 0
    for share, cells in zip(shares, inputs, strict=True):
        if cells.shape[2:] == size:
            brought = cells
        elif cells.shape[2] > size[0] or cells.shape[3] > size[1]:
            brought = pool_down(cells, padding)
        else:
            brought = nearest_up(cells, *size)
        total = total + share * brought
    if activation == "relu":
        return total.clamp(min=0)
    return total / (1 + (-total).exp()) if activation == "silu" else total
