"""Anchors of the region proposal network: the numbers that the torch module and the ONNX network share. Imports no torch.

Ren et al. 2015 (Faster R-CNN), section 3.1.1, with the conventions of torchvision's AnchorGenerator: ratio = height / width,
base boxes centred on zero and rounded, shifted by the whole-pixel stride `input side // map side`.
"""

from collections.abc import Sequence

import numpy as np


def base_anchors(stride: int, scale: int, ratios: Sequence[float]) -> np.ndarray:
    """One box a ratio, side `scale * stride`, centred on zero: float32 [A, 4] as x1, y1, x2, y2."""
    height_ratio = np.sqrt(np.asarray(ratios, np.float32))
    width_ratio = np.float32(1) / height_ratio
    width, height = width_ratio * np.float32(scale * stride), height_ratio * np.float32(scale * stride)
    return np.rint(np.stack([-width, -height, width, height], axis=1) / np.float32(2))


def level_anchors(
    input_hw: tuple[int, int], map_hw: tuple[int, int], stride: int, scale: int, ratios: Sequence[float]
) -> np.ndarray:
    """All anchors of one level in input pixels: float32 [H*W*A, 4] as x1, y1, x2, y2.

    input_hw: height and width of the image; map_hw: of this level's map; stride: the level's nominal stride (4, 8, ...).
    Order: row, column, anchor; a map (1, A, H, W) permuted to (H, W, A) lines up with it.
    """
    (height, width), (rows, columns) = input_hw, map_hw
    shift_y = np.arange(rows, dtype=np.float32) * (height // rows)
    shift_x = np.arange(columns, dtype=np.float32) * (width // columns)
    grid_y, grid_x = np.meshgrid(shift_y, shift_x, indexing="ij")
    shifts = np.stack([grid_x, grid_y, grid_x, grid_y], axis=-1).reshape(-1, 1, 4)
    return (shifts + base_anchors(stride, scale, ratios)).reshape(-1, 4)
