"""Draws detections into a picture: boxes with class and score, sized to the picture."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fastnas.data.images import DecodeError, decode_rgb
from fastnas.errors import InputError
from fastnas.export.predictor import Detection
from fastnas.files import write_atomic

# Okabe & Ito's colors, which people with color blindness can tell apart, without black.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}


def picture_format(path: Path | str) -> str:
    """Pillow's name of the format that a file's ending stands for. Raises InputError."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"cannot write a picture {path}: let its name end in {', '.join(FORMATS)}")
    return FORMATS[suffix]


def draw(image: Path | str, detections: Sequence[Detection], out: Path | str) -> None:
    """Writes the picture `out` atomically: the image file with its detections, the best on top. Raises InputError."""
    kind = picture_format(out)
    try:
        picture = Image.fromarray(decode_rgb(Path(image)))
    except DecodeError as error:
        raise InputError(f"cannot read the image {image}: {error}") from None
    pen = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 250))
    font = ImageFont.load_default(max(10, round(min(picture.size) / 35)))
    for detection in reversed(detections):
        _draw_one(pen, picture.size, detection, line, font)
    content = io.BytesIO()
    picture.save(content, kind, quality=92)
    try:
        write_atomic(out, content.getvalue())
    except FileNotFoundError:
        raise InputError(f"no folder {Path(out).parent}: make it, or name another picture") from None


def _draw_one(pen: ImageDraw.ImageDraw, size: tuple[int, int], detection: Detection, line: int, font) -> None:
    color = COLORS[(detection.label - 1) % len(COLORS)]
    x1, y1, x2, y2 = detection.box
    pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=line)
    text = f"{detection.name} {detection.score:.2f}"
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * line, bottom - top + 2 * line
    x = max(0, min(x1, size[0] - width))
    y = y1 - height if y1 >= height else y1  # inside the box where there is no room above
    pen.rectangle((x, y, x + width, y + height), fill=color)
    pen.text((x + line - left, y + line - top), text, fill="black", font=font)
