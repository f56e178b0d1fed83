"""`fastnas convert`, `train --init`, `eval`, `export`, `predict`: from a checkpoint of torchvision to a picture."""

import json

import pytest
import torch
from PIL import Image
from torchvision.models.resnet import BasicBlock, ResNet

from fastnas.blueprint import parse
from fastnas.models import build
from fastnas.models.weights import load_weights, save_weights
from fastnas.train.evaluate import METRICS
from fastnas.train.loop import Diverged

TEXT = "64x80/basic:1-2-2-2/fpn:16/rpn:20,scale=4,topk=50/rcnn:16,detections=10/classes:9"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    torch.save({"model": ResNet(BasicBlock, [1, 1, 1, 1]).state_dict()}, folder / "r.pth")
    return folder / "r.pth"


def test_the_whole_way(tmp_path, checkpoint, shapes, inside):
    backbone, out = tmp_path / "backbone.safetensors", tmp_path / "run"
    done = inside("convert", checkpoint, "--out", backbone, "--json")
    assert done.code == 0 and done.json["parts"]["backbone"] == {"copied": 72, "of": 72} and not done.json["complete"]
    assert done.json["unused"] == ["fc.weight", "fc.bias"]
    short = ("--epochs", 0.5, "--set", "train.lr=1e-4")
    done = inside("train", TEXT, "--data", shapes, "--out", out, "--init", backbone, *short, "--json")
    assert done.code == 0 and done.json["blueprint"] == TEXT.replace("classes:9", "classes:3") and "epoch" in done.err
    assert set(done.json["metrics"]) == set(METRICS)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["inherited"]["copied"] == 72 and lines[0]["inherited"]["mismatched"] == []
    converted, trained = load_weights(backbone)[2], load_weights(out / "weights.safetensors")
    key = "backbone.stage3.block1.conv1.weight"
    assert 0 < (converted[key] - trained[2][key]).abs().max() < 0.1, "trained on, from the converted weights"
    evaluated = inside("eval", "--weights", out / "weights.safetensors", "--data", shapes, "--json")
    assert evaluated.code == 0 and evaluated.json["metrics"]["ap"] == pytest.approx(done.json["metrics"]["ap"], abs=0.02)
    assert evaluated.json["images"] == 12 and evaluated.json["unknown_classes"] == []
    exported = inside("export", "--weights", out / "weights.safetensors", "--out", tmp_path / "d.onnx", "--json")
    assert exported.code == 0 and exported.json["classes"] == trained[1]
    again = inside("eval", "--weights", tmp_path / "d.onnx", "--data", shapes, "--json")
    assert again.json["metrics"] == pytest.approx(evaluated.json["metrics"], abs=2e-3)
    image = next((shapes / "images").rglob("*.*"))
    drawn = inside("predict", image, "--weights", tmp_path / "d.onnx", "--out", tmp_path / "p.png", "--score", 0)
    assert drawn.code == 0 and Image.open(tmp_path / "p.png").size == Image.open(image).size


def test_lines_for_people(tmp_path, checkpoint, inside):
    done = inside("convert", checkpoint, "--out", tmp_path / "w.safetensors", "--blueprint", TEXT)
    lines = done.out.splitlines()
    assert lines[0] == f"torchvision or timm ResNet -> {TEXT}" and lines[1] == "backbone: 72 of 72 tensors copied"
    assert "not copied: 16 tensors of the neck: not in the checkpoint" in lines
    assert "no place in the blueprint: fc.weight (in the checkpoint)" in lines and "--init" in lines[-2]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Weights of a detector with another backbone and other classes."""
    blueprint = parse("64x80/basic:1-2,base=8/fpn:8/rpn:10/rcnn:16/classes:2")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("other") / "o.safetensors"
    save_weights(path, build(blueprint), blueprint, ["cat", "dog"])
    return path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", TEXT, "--data", "SHAPES", "--out", "new", "--init", "OTHER"], "does not hold the backbone of"),
        (["train", TEXT, "--data", "SHAPES", "--out", "new", "--init", "none"], "no weights file"),
        (["train", TEXT, "--data", "SHAPES", "--out", "used"], "weights.safetensors is there already"),
        (["train", TEXT, "--data", "none", "--out", "new"], "no data folder"),
        (["train", TEXT, "--data", "SHAPES", "--set", "train.speed=2"], "train.speed"),
        (["train", TEXT, "--data", "SHAPES", "--set", "epochs=0"], "epochs"),
        (["eval", "--weights", "OTHER", "--data", "SHAPES"], "known to the weights, which know cat, dog"),
        (["eval", "--weights", "OTHER", "--data", "SHAPES", "--split", "test"], "instances_test.json"),
        (["convert", "none.pth", "--out", "w.safetensors"], "no checkpoint none.pth"),
        (["convert", "none.pth", "--out", "w.pth"], "end in .safetensors"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(tmp_path, monkeypatch, shapes, other, inside, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "weights.safetensors").write_bytes(b"precious")
    done = inside(*[{"SHAPES": shapes, "OTHER": other}.get(argument, argument) for argument in arguments])
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1 and says in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
    assert (tmp_path / "used" / "weights.safetensors").read_bytes() == b"precious"


def test_a_training_that_diverges_fails(tmp_path, shapes, inside, monkeypatch):
    def diverge(*arguments):
        raise Diverged("loss is nan at epoch 0.33")

    monkeypatch.setattr("fastnas.train.evaluator.train", diverge)
    done = inside("train", TEXT, "--data", shapes, "--out", tmp_path / "run")
    assert done.code == 1 and "the training failed" in done.err and not (tmp_path / "run" / "weights.safetensors").exists()
