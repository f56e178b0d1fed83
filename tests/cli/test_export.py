"""`fastnas export` and `fastnas predict`: from a weights file to a picture."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastnas.blueprint import parse
from fastnas.models import build
from fastnas.models.weights import save_weights
from tests.cli.test_describe import fastnas

TEXT = "96x128/basic:1-2,base=8,stem=3x3/fpn:16/rpn:20,scale=4/rcnn:16,detections=10/classes:2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    detector = build(parse(TEXT)).eval()
    save_weights(folder / "w.safetensors", detector, parse(TEXT), ["disc", "square"])
    Image.effect_mandelbrot((160, 120), (-2, -1.2, 1, 1.2), 50).convert("RGB").save(folder / "image.png")
    return folder


def test_from_weights_to_a_picture(folder, inside):
    """Both files find the same, and every command follows its contract."""
    weights, onnx = folder / "w.safetensors", folder / "d.onnx"
    done = fastnas("export", TEXT, "--weights", weights, "--out", onnx, "--check", folder / "image.png", "--json")
    exported = json.loads(done.stdout)
    assert done.returncode == 0 and exported["outputs"] == {"boxes": [1, 10, 4], "scores": [1, 10], "labels": [1, 10]}
    assert exported["blueprint"] == TEXT and exported["check"]["images"] == 1 and exported["check"]["difference"] < 1e-4
    found = []
    for source, picture in ((weights, "torch.png"), (onnx, "onnx.jpg")):
        done = inside("predict", folder / "image.png", "--weights", source, "--out", folder / picture, "--score", 0.1, "--json")
        assert done.code == 0 and Image.open(done.json["picture"]).size == (160, 120)
        found.append(done.json["detections"])
    assert len(found[0]) == len(found[1]) > 3 and {d["class"] for d in found[0]} <= {"disc", "square"}
    for one, other in zip(*found, strict=True):
        assert one["class"] == other["class"] and one["score"] == pytest.approx(other["score"], abs=1e-3)
        assert one["box"] == pytest.approx(other["box"], abs=0.5)


def test_lines_for_people(folder, inside):
    done = inside("export", "--weights", folder / "w.safetensors", "--out", folder / "raw.onnx", "--raw")
    assert done.code == 0 and "compared with PyTorch on 1 image: 6 maps differ by" in done.out
    assert "head.logits: 1 x 20 x 3" in done.out
    done = inside("predict", folder / "image.png", "--weights", folder / "raw.onnx", "--out", folder / "raw.png")
    assert done.code == 0 and done.out.strip().endswith("raw.png")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "--weights", "none.safetensors", "--out", "d.onnx"], "no weights file"),
        (["export", "--weights", "w.safetensors", "--out", "d.pt"], "end in .onnx, .engine or .plan"),
        ("export --weights w.safetensors --out d.onnx --target tensorrt --batch dynamic".split(), "rpn.proposals for any"),
        (["export", "--weights", "w.safetensors", "--out", "d.onnx", "--batch", "0"], "--batch"),
        (["export", "--weights", "w.safetensors", "--out", "d.engine", "--precision", "fp16"], "--engine tensorrt:fp16"),
        (["export", "--weights", "w.safetensors", "--out", "no/d.onnx"], "no folder"),
        (["export", "efficientdet-d0", "--weights", "w.safetensors", "--out", "d.onnx"], "another blueprint"),
        (["predict", "image.png", "--weights", "w.safetensors", "--out", "p.txt"], "end in .jpg"),
        (["predict", "none.png", "--weights", "w.safetensors", "--out", "p.png"], "none.png"),
        (["predict", "image.png", "--weights", "image.png", "--out", "p.png"], "image.png"),
    ],
)
def test_errors_are_one_line(folder, inside, monkeypatch, arguments, says):
    monkeypatch.chdir(folder)
    done = inside(*arguments)
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1 and says in done.err
    assert not (folder / "p.png").exists()


def test_an_engine_needs_tensorrt(folder, inside):
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("tensorrt is installed")
    done = inside("export", "--weights", folder / "w.safetensors", "--out", folder / "d.engine")
    assert done.code == 1 and "engine tensorrt cannot run here" in done.err and "pip install" in done.err
    assert not (folder / "d.engine").exists()
