"""The weighted sum of a BiFPN node in PyTorch (Tan, Pang & Le, CVPR 2020, section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.models.layers import max_pool

EPS = 1e-4


def weighted_fusion(
    inputs: list[Tensor], weights: Tensor | None, size: tuple[int, int], method: str, activation: str, padding: str
) -> Tensor:
    """Sum of `inputs` (N, C, h, w), each brought to `size` (pooled 3x3/2, or repeated) and times its share, then SiLU.

    Shares of `weights` (n,): fast relu(w) / (sum relu(w) + 1e-4), softmax softmax(w), sum (weights None) 1.
    """
    if method == "fast":
        shares = F.relu(weights)
        shares = shares / (shares.sum() + EPS)
    elif method == "softmax":
        shares = torch.softmax(weights, 0)
    maps = [_resize(x, size, padding) for x in inputs]
    total = maps[0] if method == "sum" else maps[0] * shares[0].to(maps[0].dtype)
    for index, x in enumerate(maps[1:], start=1):
        total = total + (x if method == "sum" else x * shares[index].to(x.dtype))
    return F.silu(total) if activation == "silu" else total


def _resize(x: Tensor, size: tuple[int, int], padding: str) -> Tensor:
    height, width = x.shape[-2:]
    if height > size[0] or width > size[1]:
        return max_pool(x, padding)
    return x if (height, width) == size else F.interpolate(x, size=size, mode="nearest")
