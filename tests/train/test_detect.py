"""Detections come back in pixels of the file and under the file's category ids; final numbers are pycocotools' own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fastnas.blueprint import parse
from fastnas.data.dataset import get_data
from fastnas.models import build
from fastnas.train.config import TrainConfig
from fastnas.train.evaluate import coco_metrics, detect, normalize
from fastnas.train.evaluator import Evaluator, Job
from fastnas.train.precision import computed_in

SIZE = (64, 80)  # of the batches; the files are larger, by another factor in x than in y, and not all by the same
FILES = [(100, 160), (96, 240), (64, 80)]
BLUEPRINT = parse("64x80/basic:1-2,base=8,stem=3x3/fpn:16/rpn:20,scale=4,topk=50/rcnn:16/classes:3")
FOUND = {"boxes": torch.tensor([[4.0, 8.0, 44.0, 28.0]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([1])}


class Perfect(torch.nn.Module):
    """Finds the targets of a data set, in its order."""

    def __init__(self, data):
        super().__init__()
        self.targets = [target for batch in data.batches(2) for target in batch.targets]

    def forward(self, images):
        found, self.targets = self.targets[: len(images)], self.targets[len(images) :]
        return [{"boxes": t.boxes, "labels": t.labels, "scores": torch.full((len(t.boxes),), 0.9)} for t in found]


@pytest.fixture
def sparse_ids(tmp_path):
    """Three images of different sizes with categories 7 and 30, listed the other way round; returns (data, annotations)."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for id, (height, width) in enumerate(FILES, 11):
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(tmp_path / "images" / f"{id}.png")
        images.append({"id": id, "file_name": f"{id}.png", "width": width, "height": height})
        for category, bbox in ((7, [4, 8, 40, 20]), (30, [10, 30, 20, 30])):
            row = {"image_id": id, "category_id": category, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0}
            annotations.append(row | {"id": len(annotations) + 1})
    categories = [{"id": 30, "name": "late"}, {"id": 7, "name": "early"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return get_data(tmp_path, "val", SIZE), annotations


def test_boxes_are_pixels_of_the_file_and_categories_those_of_the_file(sparse_ids):
    data, annotations = sparse_ids
    results = detect(Perfect(data), data, batch_size=2)
    assert [(r["image_id"], r["category_id"]) for r in results] == [(a["image_id"], a["category_id"]) for a in annotations]
    for result, annotation in zip(results, annotations, strict=True):
        assert result["bbox"] == pytest.approx(annotation["bbox"], abs=1e-4)
    assert coco_metrics(data.split, results)["ap"] == pytest.approx(1.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_folded_copy_detects_and_the_detector_stays_trainable(shapes, monkeypatch, precision):
    detector, data = build(BLUEPRINT).train(), get_data(shapes, "val", SIZE)
    with torch.no_grad():
        detector.dense(normalize(torch.randint(0, 256, (4, 3, *SIZE), dtype=torch.uint8)))  # statistics
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    ran = []
    monkeypatch.setattr(type(detector), "forward", lambda self, images: ran.append(self) or [FOUND for _ in images])
    assert len(detect(detector, data, batch_size=8, precision=precision)) == len(data)
    assert detector.training and all(parameter.requires_grad for parameter in detector.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    first, second = ran
    assert first is second is not detector and not any(isinstance(m, torch.nn.BatchNorm2d) for m in first.modules())
    assert {parameter.dtype for parameter in first.parameters()} == {computed_in(precision)}


def test_only_the_full_training_is_scored_by_pycocotools(shapes, tmp_path, monkeypatch):
    import faster_coco_eval
    import pycocotools.cocoeval

    used = []

    def spied(name, real):
        return lambda *args: used.append(name) or real(*args)

    for module, name in ((pycocotools.cocoeval, "COCOeval"), (faster_coco_eval, "COCOeval_faster")):
        monkeypatch.setattr(module, name, spied(name, getattr(module, name)))
    data = get_data(shapes, "train", SIZE), get_data(shapes, "val", SIZE)
    for phase in ("search", "final"):
        Evaluator(*data, TrainConfig()).evaluate(Job(BLUEPRINT, tmp_path, f"{phase}.safetensors", phase, 0, 0))
    assert used == ["COCOeval_faster", "COCOeval"]
