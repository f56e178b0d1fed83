"""Whether an exported file computes what the PyTorch detector does: maps number by number, detections box by box."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastnas.blueprint import Blueprint
from fastnas.data.images import DecodeError, decode_rgb
from fastnas.errors import FastnasError, InputError
from fastnas.export.predictor import Found
from fastnas.models.detector import Detector
from fastnas.models.pixels import scale_and_shift

TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2}  # largest difference of a map, as a share of its largest value
SCORE, PIXELS = {"fp32": 1e-3, "fp16": 3e-2}, {"fp32": 0.5, "fp16": 4.0}  # of one detection
SHARE = 0.95  # of the detections that must be found again: two that tie may change places, or one of them suppress the other
SEED = 0


@dataclass(frozen=True)
class Check:
    """difference: the largest of a map, as a share of its largest value. matched: those of `detections` that the file finds too."""

    images: int
    maps: int
    difference: float
    detections: int
    matched: int

    def __str__(self) -> str:
        found = f"{self.matched} of {self.detections} detections" if self.detections else "no detection in them"
        images = f"{self.images} image{'s' * (self.images != 1)}"
        return f"{images}: {self.maps} maps differ by {self.difference:.1e} of their range at most, {found}"

    def to_dict(self) -> dict:
        return asdict(self)


def check_images(blueprint: Blueprint, count: int, files: Sequence[Path | str] = ()) -> Tensor:
    """`count` images, uint8 (N, 3, H, W) of the input size: those of the files in turn, or noise of all scales without files."""
    if files:
        try:
            images = [decode_rgb(Path(file), blueprint.input) for file in files]
        except DecodeError as error:
            raise InputError(f"cannot read an image of {', '.join(map(str, files))}: {error}") from None
        stack = np.stack([images[index % len(images)] for index in range(count)])
        return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous()
    height, width = blueprint.input
    generator, total = torch.Generator().manual_seed(SEED), torch.full((count, 3, height, width), 128.0)
    for scale in (1, 4, 16, 64):
        coarse = 40 * torch.randn(count, 3, -(-height // scale), -(-width // scale), generator=generator)
        total += torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return total.clamp(0, 255).byte()


@torch.no_grad()
def reference(detector: Detector, images: Tensor, names: Sequence[str]) -> tuple[dict[str, np.ndarray], list[Found]]:
    """The detector's maps of these names and its detections."""
    scale, shift = map(torch.from_numpy, scale_and_shift())
    normalized = images.float() * scale + shift
    values = detector.dense(normalized)
    return {name: values[name].numpy() for name in names}, detector(normalized)


def compare(
    expected: tuple[dict[str, np.ndarray], list[Found]], maps: dict[str, np.ndarray], found: list[Found], precision: str
) -> Check:
    """Raises FastnasError where they differ by more than rounding."""
    wanted_maps, wanted = expected
    worst, where = 0.0, ""
    for name, value in wanted_maps.items():
        difference = np.abs(maps[name].astype(np.float64) - value).max() / max(float(np.abs(value).max()), 1e-6)
        if not difference <= worst:  # also no number at all
            worst, where = float(difference), name
    matched = sum(_matches(ours, theirs, precision) for ours, theirs in zip(wanted, found, strict=True))
    total = sum(len(image["scores"]) for image in wanted)
    check = Check(len(wanted), len(wanted_maps), worst, total, matched)
    if not worst <= TOLERANCE[precision]:
        raise FastnasError(f"the exported file computes something else: {where} differs by {worst:.1e} of its range ({check})")
    if matched < SHARE * total - 1:
        raise FastnasError(f"the exported file detects something else: {check}")
    return check


def _matches(wanted: Found, found: Found, precision: str) -> int:
    """How many of the wanted detections are among those found: same label, about the same score and box."""
    if not len(wanted["scores"]) or not len(found["scores"]):
        return 0
    same = wanted["labels"][:, None] == found["labels"]
    same &= (wanted["scores"][:, None] - found["scores"]).abs() <= SCORE[precision]
    same &= (wanted["boxes"][:, None] - found["boxes"]).abs().amax(2) <= PIXELS[precision]
    return int(same.any(1).sum())
