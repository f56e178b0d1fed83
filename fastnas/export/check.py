"""Whether an exported file computes what the PyTorch detector does: maps number by number, detections box by box."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from fastnas.blueprint import Blueprint
from fastnas.data.images import DecodeError, decode_rgb
from fastnas.errors import FastnasError, InputError
from fastnas.export.predictor import Found
from fastnas.models.detector import Detector
from fastnas.models.pixels import scale_and_shift

TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2}  # largest difference of a map, as a share of its largest value
SCORE = {"fp32": 1e-3, "fp16": 3e-2}  # of one detection
OVERLAP = {"fp32": 0.99, "fp16": 0.5}  # IoU of one detection; in half precision the second of neighbours may become the best
SHARE = 0.95  # of the detections that must be found again: two that tie may change places, or one of them suppress the other
SEED = 0


@dataclass(frozen=True)
class Check:
    """difference: the largest of a map, as a share of its largest value. detections: those that rounding cannot push out of the
    best that are kept. matched: those of them that the file finds too."""

    images: int
    maps: int
    difference: float
    detections: int
    matched: int

    def __str__(self) -> str:
        found = f"{self.matched} of {self.detections} detections" if self.detections else "no detection stands out"
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
    expected: tuple[dict[str, np.ndarray], list[Found]], maps: dict[str, np.ndarray], found: list[Found], precision: str, kept: int
) -> Check:
    """kept: most detections of an image. Raises FastnasError where they differ by more than rounding."""
    wanted_maps, wanted = expected
    worst, where = 0.0, ""
    for name, value in wanted_maps.items():
        difference = np.abs(maps[name].astype(np.float64) - value).max() / max(float(np.abs(value).max()), 1e-6)
        if not difference <= worst:  # also no number at all
            worst, where = float(difference), name
    wanted = [_outstanding(image, kept, precision) for image in wanted]
    matched = sum(_matches(ours, theirs, precision) for ours, theirs in zip(wanted, found, strict=True))
    total = sum(len(image["scores"]) for image in wanted)
    check = Check(len(wanted), len(wanted_maps), worst, total, matched)
    if not worst <= TOLERANCE[precision]:
        raise FastnasError(f"the exported file computes something else: {where} differs by {worst:.1e} of its range ({check})")
    if matched < SHARE * total - 1:
        raise FastnasError(f"the exported file detects something else: {check}")
    return check


def _outstanding(found: Found, kept: int, precision: str) -> Found:
    """Where an image is full, those a score of which rounding cannot take for the least that was kept."""
    scores = found["scores"]
    if len(scores) < kept:
        return found
    clear = scores > scores.min() + SCORE[precision]
    return {name: value[clear] for name, value in found.items()}


def _matches(wanted: Found, found: Found, precision: str) -> int:
    """How many of the wanted detections are among those found: same label, about the same score and box."""
    same = wanted["labels"][:, None] == found["labels"]
    same &= (wanted["scores"][:, None] - found["scores"]).abs() <= SCORE[precision]
    same &= box_iou(wanted["boxes"], found["boxes"]) >= OVERLAP[precision]
    return int(same.any(1).sum())
