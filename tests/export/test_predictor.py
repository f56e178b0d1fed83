"""Detecting on image files and drawing what was found."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fastnas.blueprint import parse
from fastnas.errors import InputError
from fastnas.export.check import check_images, compare
from fastnas.export.picture import draw
from fastnas.export.predictor import Detection, TorchPredictor, predict
from fastnas.models.pixels import scale_and_shift
from fastnas.models.weights import load_detector, load_weights, save_state, save_weights
from tests.export.conftest import TEXTS


class Found:
    """Finds the same two boxes on every image."""

    blueprint, classes = parse(TEXTS["two-stage"]), ["cell"]

    def find(self, images):
        assert images.dtype == torch.uint8 and tuple(images.shape) == (1, 3, 96, 128)
        boxes = torch.tensor([[0.0, 0.0, 128.0, 96.0], [32.0, 24.0, 64.0, 48.0]])
        return [{"boxes": boxes, "scores": torch.tensor([0.9, 0.4]), "labels": torch.tensor([1, 2])}]


def test_boxes_are_in_pixels_of_the_file(tmp_path):
    Image.new("RGB", (640, 240)).save(tmp_path / "i.png")
    whole = Detection(1, "cell", pytest.approx(0.9), (0, 0, 640, 240))
    assert predict(Found(), tmp_path / "i.png") == [whole, Detection(2, "class 2", pytest.approx(0.4), (160, 60, 320, 120))]
    assert predict(Found(), tmp_path / "i.png", 0.5) == [whole]


def test_images_are_prepared_as_in_training(weights, bccd, photographs):
    from fastnas.data.coco import read_coco
    from fastnas.data.dataset import DetectionData
    from fastnas.train.evaluate import detect

    predictor = TorchPredictor(weights("one-stage"))
    split = read_coco(bccd, "val")
    split = replace(split, records=split.records[:2])
    detector, _ = load_detector(weights("one-stage"))
    rows = detect(detector, DetectionData(split, predictor.blueprint.input), precision="fp32")
    for record in split.records:
        found = predict(predictor, record.path)
        expected = [row for row in rows if row["image_id"] == record.image_id]
        assert [d.score for d in found] == pytest.approx([row["score"] for row in expected], abs=1e-5) and len(found) == 20
        for detection, row in zip(found, expected, strict=True):
            x, y, w, h = row["bbox"]
            assert detection.box == pytest.approx((x, y, x + w, y + h), abs=0.1)


@pytest.mark.parametrize("name", TEXTS)
def test_the_deployed_form_detects_what_the_trained_one_does(weights, name):
    predictor, (detector, _) = TorchPredictor(weights(name)), load_detector(weights(name))
    images = check_images(predictor.blueprint, 2)
    kept = {key for key, module in predictor._detector.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert all(key.startswith("head.") for key in kept)
    scale, shift = map(torch.from_numpy, scale_and_shift())
    with torch.no_grad():
        expected = detector(images.float() * scale + shift)
    check = compare(({}, expected), {}, predictor.find(images), "fp32", kept=20)
    assert check.matched == check.detections > 0


def test_names_that_are_not_known_are_numbered(weights, tmp_path):
    blueprint, _, state = load_weights(weights("two-stage"))
    save_state(tmp_path / "w.safetensors", state, blueprint, [])
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "i.png")
    names = {d.name for d in predict(TorchPredictor(tmp_path / "w.safetensors"), tmp_path / "i.png")}
    assert names and names <= {"class 1", "class 2", "class 3"}


def test_weights_of_a_part_are_no_detector(tmp_path):
    blueprint = parse(TEXTS["one-stage"])
    part = torch.nn.Module()
    part.backbone = torch.nn.Linear(2, 2)
    save_weights(tmp_path / "w.safetensors", part, blueprint, [])
    with pytest.raises(InputError, match="only a part of the detector: train from it with --init"):
        TorchPredictor(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.webp"])
def test_a_picture_keeps_its_size_and_gets_boxes(tmp_path, name):
    Image.new("RGB", (200, 120), "black").save(tmp_path / "in.png")
    found = [Detection(1, "cell", 0.9, (20.0, 30.0, 90.0, 100.0)), Detection(2, "edge", 0.5, (150.0, 0.0, 230.0, 60.0))]
    draw(tmp_path / "in.png", found, tmp_path / name)
    picture = np.asarray(Image.open(tmp_path / name)).astype(int)
    assert picture.shape == (120, 200, 3)
    assert picture[65, 20].sum() > 200, "the left side of the first box"
    assert picture[65, 50].sum() < 30, "nothing is filled"
    assert picture[2, 170].sum() > 200, "a label at the border is inside"


def test_pictures_that_cannot_be_written(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "in.png")
    with pytest.raises(InputError, match="let its name end in"):
        draw(tmp_path / "in.png", [], tmp_path / "p.txt")
    with pytest.raises(InputError, match="no folder"):
        draw(tmp_path / "in.png", [], tmp_path / "none" / "p.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    for name in ("broken.jpg", "none.jpg"):
        with pytest.raises(InputError, match=f"cannot read the image .*{name}"):
            draw(tmp_path / name, [], tmp_path / "p.png")
