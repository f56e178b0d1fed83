"""The converter of the README: PASCAL VOC in, a data set that fastnas reads out."""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from fastnas.data.coco import read_coco

XML = """<annotation><filename>{name}.jpg</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>RBC</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>22</ymax></bndbox></object>
<object><name>Platelets</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"""


def test_voc_becomes_coco(tmp_path):
    file = Path(__file__).parents[2] / "bench" / "voc_to_coco.py"
    module = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("voc_to_coco", file))
    spec.loader.exec_module(module)
    voc = tmp_path / "voc"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (voc / folder).mkdir(parents=True)
    for split, names in (("train", ["a", "b"]), ("val", ["c"])):
        (voc / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            (voc / "Annotations" / f"{name}.xml").write_text(XML.format(name=name))
            Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(voc / "JPEGImages" / f"{name}.jpg")
    assert module.convert(voc, tmp_path / "coco") == {"train": 2, "val": 1}
    train = read_coco(tmp_path / "coco", "train")
    assert [category.name for category in train.classes] == ["Platelets", "RBC"]
    assert train.records[0].boxes.tolist() == [[1, 2, 11, 22]] and train.records[0].labels.tolist() == [2]
    assert [problem.kind for problem in train.problems] == ["box-zero-size"] * 2
