"""Random changes of a training image and its boxes: zoom, color, flips. About a millisecond on one CPU core.

A plan holds all that is random about one image: pixels and boxes cannot disagree, a seed gives the same images again.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from fastnas.errors import InputError

DRAWS = 8  # uniform numbers that one plan uses
MIN_AREA_LEFT = 0.3  # a box that keeps less of its area inside the image is dropped
PADDING = 114  # grey around an image that was zoomed out
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


class Plan(NamedTuple):
    """What happens to one image: `source` is scaled to `target`, then colors, then flips.

    Both are (left, top, width, height) in whole pixels. Zooming in, the target is the whole image; zooming out, the
    source is.
    """

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]
    brightness: float
    contrast: float
    saturation: float
    flip_x: bool
    flip_y: bool


@dataclass(frozen=True, slots=True)
class Augment:
    """Which changes are drawn for each image.

    horizontal_flip, vertical_flip: probabilities. color: strength 0 to 1, brightness, contrast and saturation each
    change by a factor within 1 +- color. zoom: range of the scale (log-uniform) about a random point; above 1 crops,
    below 1 pads.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    color: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "vertical_flip", "color"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"augment {name} is {getattr(self, name)}, choose 0 to 1")
        if len(self.zoom) != 2 or not 0.1 <= self.zoom[0] <= self.zoom[1] <= 10.0:
            raise InputError(f"augment zoom is {self.zoom}, choose a range like (0.75, 1.3) within 0.1 to 10")

    def plan(self, draws: list[float], size: tuple[int, int]) -> Plan:
        """The plan for an image of `size` (h, w) from `DRAWS` uniform numbers in [0, 1)."""
        height, width = size
        low, high = self.zoom
        scale = low * math.exp(draws[0] * math.log(high / low))
        whole = (0, 0, width, height)
        share = min(scale, 1 / scale)
        w, h = max(1, round(width * share)), max(1, round(height * share))
        part = (round(draws[1] * (width - w)), round(draws[2] * (height - h)), w, h)
        source, target = (part, whole) if scale > 1 else (whole, part)
        brightness, contrast, saturation = (1 + self.color * (2 * draw - 1) for draw in draws[3:6])
        flip_x, flip_y = draws[6] < self.horizontal_flip, draws[7] < self.vertical_flip
        return Plan(source, target, brightness, contrast, saturation, flip_x, flip_y)


def apply_to_image(plan: Plan, image: Tensor, out: Tensor) -> None:
    """Writes the changed image to `out`. Both are uint8 [h, w, 3]; `image` is not changed."""
    changed = _color(plan, _zoom(plan, image))
    flips = [axis for axis, flip in ((0, plan.flip_y), (1, plan.flip_x)) if flip]
    if flips:
        # As [3, h, w] in channels-last order: torch's fast path for flips of images.
        changed = torch.flip(changed.permute(2, 0, 1)[None], [axis + 2 for axis in flips])[0].permute(1, 2, 0)
    out.copy_(changed)


def apply_to_boxes(plan: Plan, boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """New boxes float32 [n, 4], clipped to the image of `size` (h, w), and the share of each area that is left, [n]."""
    height, width = size
    scale = np.array([plan.target[2] / plan.source[2], plan.target[3] / plan.source[3]] * 2, np.float32)
    moved = (boxes - np.array(plan.source[:2] * 2, np.float32)) * scale + np.array(plan.target[:2] * 2, np.float32)
    clipped = np.clip(moved, 0, np.array([width, height] * 2, np.float32))
    left = (_sides(clipped).prod(1)) / _sides(moved).prod(1)
    if plan.flip_x:
        clipped[:, [0, 2]] = width - clipped[:, [2, 0]]
    if plan.flip_y:
        clipped[:, [1, 3]] = height - clipped[:, [3, 1]]
    # A sliver whose sides vanish in float32 is no box any more.
    left[(_sides(clipped) <= 0).any(1)] = 0
    return clipped, left


def _sides(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2:] - boxes[:, :2]


def _zoom(plan: Plan, image: Tensor) -> Tensor:
    if plan.source == plan.target:
        return image
    x, y, w, h = plan.source
    left, top, width, height = plan.target
    # Channels-last and whole: torch's fast path for bytes.
    part = image[y : y + h, x : x + w].permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    resized = interpolate(part, size=(height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    if resized.shape == image.shape:
        return resized
    padded = torch.full_like(image, PADDING)
    padded[top : top + height, left : left + width] = resized
    return padded


def _color(plan: Plan, image: Tensor) -> Tensor:
    if plan.brightness == plan.contrast == plan.saturation == 1.0:
        return image
    # out = brightness * (contrast * (saturation * pixel + (1 - saturation) * grey) + (1 - contrast) * mean)
    pixels = image.numpy()
    gain = plan.brightness * plan.contrast
    mean = float(pixels[::8, ::8].mean((0, 1)) @ LUMA)
    mix = gain * (plan.saturation * np.eye(3) + (1 - plan.saturation) * LUMA)
    offset = np.full((3, 1), plan.brightness * (1 - plan.contrast) * mean)
    # Pillow's matrix conversion: three times as fast as NumPy or torch with three interleaved channels.
    matrix = tuple(np.hstack([mix, offset]).ravel().tolist())
    return torch.from_numpy(np.array(Image.fromarray(pixels).convert("RGB", matrix)))
