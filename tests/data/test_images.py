"""Decoding single files: modes, truncation, formats."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastnas.data.coco import read_coco
from fastnas.data.images import DecodeError, decode_rgb, read_header


def _ramp(high: int, kind: type) -> np.ndarray:
    return np.linspace(0, high, 16 * 20).reshape(16, 20).astype(kind)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str):
    suffix = {"CMYK": "jpg", "YCbCr": "tif"}.get(mode, "png")
    image = Image.fromarray(_ramp(255, np.uint8)).convert("RGB").convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    header = read_header(tmp_path / f"a.{suffix}")
    assert (header.width, header.height, header.mode) == (20, 16, mode)
    pixels = decode_rgb(tmp_path / f"a.{suffix}")
    assert pixels.shape == (16, 20, 3) and pixels.dtype == np.uint8
    assert pixels[0, 0].max() < 30 and pixels[-1, -1].min() > 220


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path):
    Image.fromarray(_ramp(65535, np.uint16)).save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png").mode.startswith("I;16")
    assert np.array_equal(decode_rgb(tmp_path / "a.png")[..., 1], _ramp(65535, np.uint16) >> 8)


def test_float_pixels_are_stretched(tmp_path: Path):
    Image.fromarray(_ramp(1, np.float32)).save(tmp_path / "a.tif")
    pixels = decode_rgb(tmp_path / "a.tif")
    assert pixels.min() == 0 and pixels.max() == 255


def test_transparent_palette_keeps_its_colors(tmp_path: Path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    assert decode_rgb(tmp_path / "a.png")[2, 2].tolist() == [200, 10, 20]


def test_size_is_exact_and_the_picture_stays(tmp_path: Path):
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[:, 320:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    small = decode_rgb(tmp_path / "a.jpg", (31, 47))
    assert small.shape == (31, 47, 3)
    assert small[:, :22].max() < 10 and small[:, 25:].min() > 245


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.95])
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "webp"])
def test_truncated_files_are_decode_errors(tmp_path: Path, suffix: str, share: float):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DecodeError) as caught:
        decode_rgb(tmp_path / f"cut.{suffix}")
    assert "\n" not in str(caught.value)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff", EPS])
def test_what_is_no_image_is_a_decode_error(tmp_path: Path, content: bytes):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DecodeError):
        read_header(tmp_path / "a.jpg")


def test_a_decompression_bomb_is_a_decode_error(tmp_path: Path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DecodeError):
        read_header(tmp_path / "a.png")


def test_orientation_is_told_and_not_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.jpg", exif=exif)
    header = read_header(tmp_path / "a.jpg")
    assert (header.width, header.height, header.orientation) == (20, 10, 6)
    assert decode_rgb(tmp_path / "a.jpg").shape == (10, 20, 3)


def _huge_png(width: int, height: int) -> bytes:
    image = io.BytesIO()
    Image.new("1", (width, height)).save(image, "PNG")
    return image.getvalue()


def test_an_image_over_the_pixel_limit_is_refused_with_its_size(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(_huge_png(10_001, 10_000))
    assert (tmp_path / "a.png").stat().st_size < 100_000
    for read in (read_header, decode_rgb):
        with pytest.raises(DecodeError, match="10001 x 10000 pixels, over the limit of 100 million"):
            read(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(_huge_png(10_000, 10_000))
    assert read_header(tmp_path / "b.png").width == 10_000


def test_a_data_set_reports_the_image_over_the_limit(tmp_path: Path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/big.png").write_bytes(_huge_png(10_001, 10_000))
    Image.new("RGB", (20, 10)).save(tmp_path / "images/ok.png")
    sizes = {"big.png": (10_001, 10_000), "ok.png": (20, 10)}
    images = [{"id": i, "file_name": n, "width": w, "height": h} for i, (n, (w, h)) in enumerate(sizes.items())]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "annotations/instances_train.json").write_text(json.dumps(document))
    split = read_coco(tmp_path, "train")
    assert [record.path.name for record in split.records] == ["ok.png"]
    found = {problem.file: problem for problem in split.problems}["big.png"]
    assert found.kind == "file-unreadable" and "10001 x 10000" in found.detail
