"""Turns a data set in PASCAL VOC form into the COCO form that fastnas reads.

    python bench/voc_to_coco.py VOC_DIR OUT_DIR

VOC_DIR holds Annotations/*.xml, JPEGImages/ and ImageSets/Main/{train,val}.txt, as BCCD does. Boxes are taken as they are: width
and height are xmax - xmin and ymax - ymin, so a box without area stays one, and fastnas reports it.
"""

import json
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree


def convert(voc: Path, out: Path) -> dict[str, int]:
    """Writes OUT/annotations/instances_{train,val}.json and OUT/images/; returns the number of images per split."""
    trees = {
        split: [ElementTree.parse(voc / "Annotations" / f"{name}.xml") for name in _names(voc, split)] for split in ("train", "val")
    }
    names = sorted({item.findtext("name") for split in trees.values() for tree in split for item in tree.iter("object")})
    categories = [{"id": index, "name": name} for index, name in enumerate(names, start=1)]
    ids = {category["name"]: category["id"] for category in categories}
    (out / "annotations").mkdir(parents=True)
    (out / "images").mkdir()
    for split, annotations in trees.items():
        images, boxes = [], []
        for image_id, tree in enumerate(annotations, start=1):
            file = _bare_name(tree.findtext("filename") or "")
            shutil.copyfile(voc / "JPEGImages" / file, out / "images" / file)
            width, height = (int(tree.findtext(f"size/{side}")) for side in ("width", "height"))
            images.append({"id": image_id, "file_name": file, "width": width, "height": height})
            for item in tree.iter("object"):
                x1, y1, x2, y2 = (int(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                boxes.append({"id": len(boxes) + 1, "image_id": image_id, "category_id": ids[item.findtext("name")], **box})
        document = {"images": images, "annotations": boxes, "categories": categories}
        (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return {split: len(annotations) for split, annotations in trees.items()}


def _names(voc: Path, split: str) -> list[str]:
    return (voc / "ImageSets" / "Main" / f"{split}.txt").read_text().split()


def _bare_name(file: str) -> str:
    """The name without folders: what an annotation says must not lead out of OUT_DIR."""
    name = Path(file).name
    if name in ("", ".."):
        raise SystemExit(f"an annotation names the image file {file!r}: correct its <filename>")
    return name


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(convert(Path(sys.argv[1]), Path(sys.argv[2])))
