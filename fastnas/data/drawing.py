"""Draws one image of the generated set: shapes over a cluttered background, with the visible mask of every shape.

Shapes are polygons rendered at `OVERSAMPLE` times the resolution, painted back to front. The box of a shape is the
extent of what stays visible of it; a shape that is mostly hidden is not painted at all.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CLASSES = ("disc", "square", "triangle", "ring", "star", "cross", "crescent", "arrow")
OVERSAMPLE = 4
MIN_SIZE = 10  # pixels, diameter of a shape
MIN_VISIBLE_SIDE = 6  # pixels
MIN_VISIBLE = 0.3  # share of a shape's area
MAX_SHAPES = 8
EMPTY_SHARE = 0.06  # images without a shape
HUE_SPREAD = 0.10  # a class prefers a hue, loosely: color helps at first and never decides

Outline = list[tuple[np.ndarray, int]]  # polygons [n, 2] in the unit disc, painted with 255 or erased with 0


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """A painted shape: label 1..K, box (x1, y1, x2, y2) in whole pixels, mask bool [h, w] of its visible pixels."""

    label: int
    box: tuple[int, int, int, int]
    mask: np.ndarray


def render(rng: np.random.Generator, size: tuple[int, int], classes: int) -> tuple[np.ndarray, list[Instance]]:
    """One image, uint8 [h, w, 3], and its shapes from front to back. Everything random comes from `rng`."""
    canvas = _background(rng, size)
    placed = [] if rng.random() < EMPTY_SHARE else _place(rng, size, classes)
    for label, window, alpha, _ in reversed(placed):  # back to front
        behind = canvas[window]
        behind += alpha[..., None] * (_surface(rng, behind, alpha, label, classes) - behind)
    return _camera(rng, canvas), [Instance(label, _extent(mask), mask) for label, _, _, mask in placed]


Window = tuple[slice, slice]  # rows and columns of the image


def _place(
    rng: np.random.Generator, size: tuple[int, int], classes: int
) -> list[tuple[int, Window, np.ndarray, np.ndarray]]:
    """Label, window, coverage (float32, of the window) and visible mask bool [h, w] of each shape, front to back."""
    height, width = size
    free = np.ones(size, np.float32)
    placed = []
    for _ in range(int(rng.integers(1, MAX_SHAPES + 1))):
        label = int(rng.integers(1, classes + 1))
        radius = 0.5 * math.exp(rng.uniform(math.log(MIN_SIZE), math.log(min(size) / 2)))
        centre = rng.uniform(0, width), rng.uniform(0, height)
        squash, turn = rng.uniform(0.8, 1.0), rng.uniform(0, 2 * math.pi)
        window, alpha, full = _coverage(outline(CLASSES[label - 1]), size, centre, radius, squash, turn)
        visible = alpha * free[window]
        mask = np.zeros(size, np.bool_)
        mask[window] = visible > 0.5
        if float(visible.sum()) < MIN_VISIBLE * full or not mask.any():
            continue
        x1, y1, x2, y2 = _extent(mask)
        if min(x2 - x1, y2 - y1) < MIN_VISIBLE_SIDE:
            continue
        free[window] *= 1 - alpha
        placed.append((label, window, alpha, mask))
    return placed


def outline(name: str) -> Outline:
    """The polygons of a class in the unit disc, unrotated."""
    if name == "disc":
        return [(_regular(40), 255)]
    if name == "square":
        return [(_regular(4), 255)]
    if name == "triangle":
        return [(_regular(3), 255)]
    if name == "ring":
        return [(_regular(40), 255), (_regular(40) * 0.55, 0)]
    if name == "star":
        return [(_regular(10) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None], 255)]
    if name == "crescent":
        return [(_regular(40), 255), (_regular(40) * 0.8 + (0.45, 0.0), 0)]
    if name == "cross":
        a, b = 0.94, 0.32
        arm = [(b, b), (b, a), (-b, a)]  # the four arms are turns of this corner chain
        points = [(x * c - y * s, x * s + y * c) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in arm]
    else:  # arrow
        points = [(1, 0), (0.1, 0.8), (0.1, 0.3), (-0.9, 0.3), (-0.9, -0.3), (0.1, -0.3), (0.1, -0.8)]
    return [(np.array(points, np.float64), 255)]


def _regular(corners: int) -> np.ndarray:
    angles = 2 * math.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _coverage(
    shape: Outline, size: tuple[int, int], centre: tuple[float, float], radius: float, squash: float, turn: float
) -> tuple[Window, np.ndarray, float]:
    """Window of the image, coverage 0..1 of its pixels, and the area in pixels (also of what lies off the image)."""
    half = math.ceil(radius) + 1
    left, top = round(centre[0]) - half, round(centre[1]) - half
    side = 2 * half
    large = Image.new("L", (side * OVERSAMPLE, side * OVERSAMPLE))
    draw = ImageDraw.Draw(large)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    for points, value in shape:
        points = (points * (1.0, squash)) @ rotation * radius + centre - (left, top)
        draw.polygon([tuple(point) for point in (points * OVERSAMPLE).tolist()], fill=value)
    alpha = np.asarray(large.reduce(OVERSAMPLE), np.float32) / 255
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, size[1]), min(top + side, size[0])
    inside = alpha[y1 - top : y2 - top, x1 - left : x2 - left]  # never empty: the centre lies on the image
    return (slice(y1, y2), slice(x1, x2)), inside, float(alpha.sum())


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _surface(
    rng: np.random.Generator, behind: np.ndarray, alpha: np.ndarray, label: int, classes: int
) -> np.ndarray:
    """Color of a shape in its window, float32 [h, w, 3]: base color, gradient, sometimes stripes."""
    size = alpha.shape
    around = np.tensordot(alpha, behind, 2) / max(float(alpha.sum()), 1e-6)
    for _ in range(8):  # at least some contrast, else the shape cannot be seen at all
        hue = (label - 1) / classes + rng.normal(0, HUE_SPREAD)
        color = _rgb(hue, rng.uniform(0.4, 1.0), rng.uniform(0.35, 1.0))
        if float(np.abs(color - around).max()) > 60:
            break
    shade = 1 + rng.uniform(0, 0.35) * _ramp(rng, size)
    if rng.random() < 0.3:
        shade = shade * (1 + rng.uniform(0.1, 0.25) * _stripes(rng, size, (4.0, 12.0)))
    return color * shade[..., None]


def _background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """float32 [h, w, 3], 0 to 255: two colors mixed by a gradient, noise or stripes, then clutter that is no class."""
    first, second = (_rgb(rng.random(), rng.uniform(0, 0.7), rng.uniform(0.15, 0.95)) for _ in range(2))
    weight = 0.6 * _smooth(rng, size, int(rng.integers(2, 7))) + 0.6 * _ramp(rng, size)
    if rng.random() < 0.35:
        weight = weight + 0.5 * _stripes(rng, size, (8.0, 50.0))
    mix = np.clip(0.5 + 0.5 * weight, 0, 1)[..., None]
    grain = _smooth(rng, size, 24)[..., None] * rng.uniform(4, 18)
    image = Image.fromarray(np.clip(first + mix * (second - first) + grain, 0, 255).astype(np.uint8))
    return np.asarray(_clutter(rng, image), np.float32)


def _clutter(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Curved lines and soft irregular blobs."""
    width, height = image.size
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 4))):
        corners = int(rng.integers(7, 12))
        angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
        radii = rng.uniform(0.25, 1.0, corners) * rng.uniform(5, 26)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        points = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)
        draw.polygon([tuple(point) for point in points.tolist()], fill=_fill(rng))
    image = image.filter(ImageFilter.BoxBlur(float(rng.uniform(0.8, 2.2))))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 6))):
        steps = np.cumsum(rng.normal(0, 14, (int(rng.integers(3, 9)), 2)), 0) + rng.uniform((0, 0), (width, height))
        draw.line([tuple(point) for point in steps.tolist()], fill=_fill(rng), width=int(rng.integers(1, 4)))
    return image


def _camera(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Slight blur, then sensor noise."""
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.BoxBlur(float(rng.uniform(0.2, 0.7))))
    noise = rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(2, 9))
    return np.clip(np.asarray(image) + noise + 0.5, 0, 255).astype(np.uint8)


def _smooth(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Noise of `cells` bumps along each side, -1 to 1."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _ramp(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Linear gradient in a random direction, -1 to 1."""
    turn = rng.uniform(0, 2 * math.pi)
    return _along(size, turn) / np.float32(0.5 * math.hypot(*size))


def _stripes(rng: np.random.Generator, size: tuple[int, int], period: tuple[float, float]) -> np.ndarray:
    """Sine wave in a random direction, -1 to 1; `period` is its range in pixels."""
    turn, length = rng.uniform(0, 2 * math.pi), rng.uniform(*period)
    return np.sin(_along(size, turn) * np.float32(2 * math.pi / length) + np.float32(rng.uniform(0, 6.3)))


def _along(size: tuple[int, int], turn: float) -> np.ndarray:
    y, x = (np.arange(n, dtype=np.float32) - np.float32(n / 2) for n in size)
    return x[None, :] * np.float32(math.cos(turn)) + y[:, None] * np.float32(math.sin(turn))


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """float32 [3], 0 to 255."""
    wheel = np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1.0 * 6 - 3) - 1
    return (255 * value * (1 - saturation * (1 - np.clip(wheel, 0, 1)))).astype(np.float32)


def _fill(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue
