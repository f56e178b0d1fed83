"""One image file: reading its header, decoding it to 8-bit RGB at a given size.

Pixels are used as stored: an EXIF orientation is reported by the reader and not applied, as COCO tools do. (TIFF is the
exception: Pillow applies its orientation on decoding, and the size in the header already counts it.)
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

# Formats whose decoders read pixels only. Pillow's list also holds EPS, which starts Ghostscript on the file.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
ORIENTATION_TAG = 274
MAX_PIXELS = 100_000_000  # 300 MB as RGB; a file of a few kB can claim more (decompression bomb)


class DecodeError(Exception):
    """The file cannot be read as an image. The message is one line and names no file."""


@dataclass(frozen=True, slots=True)
class Header:
    """Size in pixels as stored, Pillow's mode ("RGB", "L", "I;16" ...), EXIF orientation (1 = upright)."""

    width: int
    height: int
    mode: str
    orientation: int


def read_header(path: Path) -> Header:
    """Reads the size and the mode without decoding pixels. Raises DecodeError."""
    with _open(path) as image:
        return Header(image.width, image.height, image.mode, _orientation(image))


def decode_rgb(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes to uint8 [h, w, 3], resized to exactly `size` = (h, w) where given (bilinear with antialias).

    Raises DecodeError.
    """
    with _open(path) as image:
        try:
            if size is not None:
                # libjpeg decodes at 1/2, 1/4, 1/8 almost for free; twice the target keeps the resize below clean.
                image.draft(None, (2 * size[1], 2 * size[0]))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rgb = _to_rgb(image)
            if size is not None and rgb.size != (size[1], size[0]):
                rgb = rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, zlib.error ...
            raise DecodeError(_reason(error)) from None
        return np.array(rgb)


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(path, formats=FORMATS)
    except MemoryError:
        raise
    except Image.UnidentifiedImageError:
        raise DecodeError("not an image of a known format") from None
    except Exception as error:  # among them Pillow's own limit, which is higher and names the number of pixels
        raise DecodeError(_reason(error)) from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise DecodeError(f"{image.width} x {image.height} pixels, over the limit of {MAX_PIXELS // 10**6} million")
    return image


def _orientation(image: Image.Image) -> int:
    # Asking a PNG without EXIF for it would decode the whole file.
    if "exif" not in image.info or image.format == "TIFF":
        return 1
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image) >> 8)  # Pillow's own conversion clips at 255: nearly all white
    if image.mode in ("I", "F"):
        return _grey(_stretch(np.asarray(image).astype(np.float64)))
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _stretch(values: np.ndarray) -> np.ndarray:
    # 32-bit pixels carry no scale: the image's own range becomes 0 to 255.
    values = np.where(np.isfinite(values), values, 0.0)
    low, high = values.min(), values.max()
    return (values - low) * (255.0 / max(high - low, 1e-30))


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _reason(error: Exception) -> str:
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return f"{text[:120] or type(error).__name__}"
