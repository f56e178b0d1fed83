"""The converter of the README: PASCAL VOC in, a data set that fastnas reads out."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastnas.data.coco import read_coco

XML = """<annotation><filename>{name}.jpg</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>RBC</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>22</ymax></bndbox></object>
<object><name>Platelets</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"""


def _converter():
    file = Path(__file__).parents[2] / "bench" / "voc_to_coco.py"
    module = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("voc_to_coco", file))
    spec.loader.exec_module(module)
    return module


def _voc(folder, filename="{name}.jpg"):
    voc = folder / "voc"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (voc / folder).mkdir(parents=True)
    for split, names in (("train", ["a", "b"]), ("val", ["c"])):
        (voc / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            (voc / "Annotations" / f"{name}.xml").write_text(XML.replace("{name}.jpg", filename).format(name=name))
            Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(voc / "JPEGImages" / f"{name}.jpg")
    return voc


def test_voc_becomes_coco(tmp_path):
    assert _converter().convert(_voc(tmp_path), tmp_path / "coco") == {"train": 2, "val": 1}
    train = read_coco(tmp_path / "coco", "train")
    assert [category.name for category in train.classes] == ["Platelets", "RBC"]
    assert train.records[0].boxes.tolist() == [[1, 2, 11, 22]] and train.records[0].labels.tolist() == [2]
    assert [problem.kind for problem in train.problems] == ["box-zero-size"] * 2


def test_only_the_bare_name_of_an_image_is_used(tmp_path):
    _converter().convert(_voc(tmp_path, "../../{name}.jpg"), tmp_path / "deep" / "coco")
    assert sorted(file.name for file in (tmp_path / "deep/coco/images").iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    assert not list(tmp_path.glob("*.jpg")) and not list((tmp_path / "deep").glob("*.jpg"))
    images = json.loads((tmp_path / "deep/coco/annotations/instances_train.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("filename", ["", "/", "..", "../.."])
def test_an_annotation_without_a_file_name_is_refused(tmp_path, filename):
    with pytest.raises(SystemExit, match="correct its <filename>"):
        _converter().convert(_voc(tmp_path, filename), tmp_path / "coco")
