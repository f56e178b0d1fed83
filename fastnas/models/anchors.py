"""Anchors: the numbers that the torch modules and the ONNX networks share. Imports no torch.

`level_anchors`: of the region proposal network, Ren et al. 2015 (Faster R-CNN), section 3.1.1, and of RetinaNet, with the
conventions of torchvision's AnchorGenerator: ratio = height / width, base boxes centred on zero and rounded, shifted by the
whole-pixel stride `input side // map side`. `cell_anchors`: of EfficientDet.
"""

from collections.abc import Sequence

import numpy as np

from fastnas.blueprint.blocks import AnchorHead, RetinaDetections


def base_anchors(stride: int, scale: int, ratios: Sequence[float], octaves: int = 1, sizes: int = 1) -> np.ndarray:
    """One box a ratio and side `scale * stride * 2^(o / octaves)` in whole pixels, o from 0 to below octaves * sizes, centred on
    zero: float32 [A, 4] as x1, y1, x2, y2."""
    height_ratio = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    width_ratio = np.float32(1) / height_ratio
    sides = np.array([int(scale * stride * 2 ** (step / octaves)) for step in range(octaves * sizes)], np.float32)
    width, height = (width_ratio * sides).ravel(), (height_ratio * sides).ravel()
    return np.rint(np.stack([-width, -height, width, height], axis=1) / np.float32(2))


def level_anchors(
    input_hw: tuple[int, int], map_hw: tuple[int, int], stride: int, scale: int, ratios: Sequence[float], octaves: int = 1,
    sizes: int = 1,
) -> np.ndarray:  # fmt: skip
    """All anchors of one level in input pixels: float32 [H*W*A, 4] as x1, y1, x2, y2.

    input_hw: height and width of the image; map_hw: of this level's map; stride: the level's nominal stride (4, 8, ...).
    Order: row, column, ratio, side; a map (1, A, H, W) permuted to (H, W, A) lines up with it. octaves, sizes: as for
    `base_anchors`.
    """
    (height, width), (rows, columns) = input_hw, map_hw
    shift_y = np.arange(rows, dtype=np.float32) * (height // rows)
    shift_x = np.arange(columns, dtype=np.float32) * (width // columns)
    grid_y, grid_x = np.meshgrid(shift_y, shift_x, indexing="ij")
    shifts = np.stack([grid_x, grid_y, grid_x, grid_y], axis=-1).reshape(-1, 1, 4)
    return (shifts + base_anchors(stride, scale, ratios, octaves, sizes)).reshape(-1, 4)


def cell_anchors(
    input_hw: tuple[int, int], map_hw: tuple[int, int], scale: float, octaves: int, aspects: Sequence[tuple[float, float]]
) -> np.ndarray:
    """EfficientDet's anchors of one level in input pixels: float32 [H*W*A, 4] as x1, y1, x2, y2.

    Sides scale x stride x 2^(o / octaves) x aspect (width, height), centred on the cells. The stride is input side / map side, a
    fraction at odd sizes. Order: row, column, octave, aspect; a map (1, A x, H, W) permuted to (H, W, A x) lines up with it.
    """
    (height, width), (rows, columns) = input_hw, map_hw
    stride = np.array([width / columns, height / rows])
    octave = scale * 2 ** (np.arange(octaves) / octaves)
    sides = (octave[:, None, None] * np.asarray(aspects, np.float64) * stride).reshape(-1, 2)
    grid_y, grid_x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    centre = ((np.stack([grid_x, grid_y], axis=-1) + 0.5) * stride).reshape(-1, 1, 2)
    return np.concatenate([centre - sides / 2, centre + sides / 2], axis=2).reshape(-1, 4).astype(np.float32)


def head_anchors(s: AnchorHead, maps: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Anchors [H*W*A, 4] of every level of a one-stage detector, for maps of the given (height, width)."""
    if isinstance(s, RetinaDetections):
        levels = zip(maps, s.strides, strict=True)
        return [level_anchors(s.input, hw, stride, s.scale, s.ratios, s.octaves) for hw, stride in levels]
    return [cell_anchors(s.input, hw, s.scale, s.octaves, s.aspects) for hw in maps]
