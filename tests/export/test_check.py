"""What the comparison of an exported file with PyTorch lets pass, and what not."""

import numpy as np
import pytest
import torch

from fastnas.blueprint import parse
from fastnas.errors import FastnasError
from fastnas.export.check import compare
from fastnas.export.onnx_file import Form, export_onnx
from fastnas.models import build
from fastnas.models.weights import save_weights
from tests.export.conftest import TEXTS

MAPS = {"map": np.linspace(-1, 1, 60).reshape(1, 3, 4, 5)}


def found(count: int, step: float = 0.01) -> dict[str, torch.Tensor]:
    """Detections whose scores are `step` apart."""
    generator = torch.Generator().manual_seed(0)
    corner = 100 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([corner, corner + 10 + 30 * torch.rand(count, 2, generator=generator)], 1)
    return {"boxes": boxes, "scores": 0.9 - step * torch.arange(count), "labels": torch.arange(count) % 3 + 1}


def check(changed: dict, precision: str = "fp32", kept: int = 100, maps=MAPS, count: int = 40, step: float = 0.01):
    wanted = found(count, step)
    return compare((MAPS, [wanted]), maps, [{**wanted, **changed}], precision, kept)


def test_rounding_passes():
    result = check({"boxes": found(40)["boxes"] + 1e-3, "scores": found(40)["scores"] - 1e-4})
    assert (result.detections, result.matched, result.difference) == (40, 40, 0.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"boxes": found(40)["boxes"] + 1.0},
        {"labels": found(40)["labels"] % 3 + 1},
        {"scores": found(40)["scores"] - 0.005},
        {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)},
    ],
)
def test_other_detections_are_refused(changed):
    with pytest.raises(FastnasError, match="detects something else"):
        check(changed)


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_other_maps_are_refused(wrong):
    with pytest.raises(FastnasError, match="computes something else: map"):
        check({}, maps={"map": MAPS["map"] * wrong})


def test_those_that_rounding_pushes_out_of_the_best_do_not_count():
    """Of as many as are kept, the last may be any of those that score about the same."""
    assert check({}, kept=40).detections == 39 and check({}, kept=40, precision="fp16").detections == 36
    assert str(check({}, kept=40, step=1e-6)).endswith("no detection stands out")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_detector_that_has_learned_nothing_is_exported(tmp_path, name, precision):
    """All its scores are about the same."""
    torch.manual_seed(0)
    save_weights(tmp_path / "w.safetensors", build(parse(TEXTS[name])), parse(TEXTS[name]), list("abc"))
    assert export_onnx(tmp_path / "w.safetensors", Form(precision=precision)).check.maps
