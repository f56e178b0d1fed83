"""Reading COCO splits: layouts, every rule for dirty data on real files, fatal errors."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastnas.data.coco import CocoSplit, as_coco_dict, check_same_classes, read_coco
from fastnas.errors import InputError

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


def write(root: Path, document: Any, name: str = "instances_train.json") -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / name).write_text(document if isinstance(document, str) else json.dumps(document))
    return root


def picture(root: Path, name: str = "images/a.png", size: tuple[int, int] = (100, 80), mode: str = "RGB", **keys: Any):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path, **keys)
    return path


def image(id: int = 1, name: str = "a.png", size: tuple[int, int] = (100, 80)) -> dict[str, Any]:
    return {"id": id, "file_name": name, "width": size[0], "height": size[1]}


def box(id: int | None, bbox: Any, image_id: int = 1, category_id: int = 3, **keys: Any) -> dict[str, Any]:
    return {"id": id, "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0, **keys}


def document(images: list[Any], annotations: list[Any]) -> dict[str, Any]:
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def read_one(root: Path, *annotations: Any, listed: dict[str, Any] | None = None, **keys: Any) -> CocoSplit:
    """One good image a.png of 100 x 80 pixels with the given annotations and one sound box (id 1000)."""
    if not (root / "images" / "a.png").exists():
        picture(root)
    write(root, document([listed or image()], [*annotations, box(1000, [10, 10, 20, 20])]))
    return read_coco(root, "train", **keys)


def kinds(split: CocoSplit) -> list[tuple[str, str, int | None]]:
    return [(found.kind, found.file, found.id) for found in split.problems]


def ids(split: CocoSplit) -> list[int]:
    return [id for record in split.records for id in record.annotation_ids.tolist()]


# Layouts


@pytest.mark.parametrize(
    ("annotations", "folder"),
    [
        ("instances_train.json", "images"),
        ("instances_train.json", "images/train"),
        ("instances_train2017.json", "train2017"),
        ("instances_train2017.json", "images/train2017"),
        ("instances_train2017.json", "images"),
    ],
)
def test_layouts(tmp_path: Path, annotations: str, folder: str):
    path = picture(tmp_path, f"{folder}/a.png")
    write(tmp_path, document([image()], [box(5, [10, 20, 30, 40], area=600)]), annotations)
    split = read_coco(str(tmp_path), "train")
    assert split.problems == () and split.annotation_file.name == annotations
    record = split.records[0]
    assert (record.image_id, record.path, record.width, record.height) == (1, path, 100, 80)
    assert record.boxes.tolist() == [[10, 20, 40, 60]] and record.boxes.dtype == np.float32
    assert record.labels.tolist() == [1] and record.labels.dtype == np.int64  # dog, id 3, comes first
    assert record.areas.tolist() == [600] and record.annotation_ids.tolist() == [5] and not record.crowd.any()
    with pytest.raises(ValueError, match="read-only"):
        record.boxes[0] = 0


def test_labels_follow_category_ids(tmp_path: Path):
    split = read_one(tmp_path, box(1, [1, 1, 5, 5], category_id=7), box(2, [1, 1, 5, 5], category_id=3))
    assert [(c.id, c.name) for c in split.classes] == [(3, "dog"), (7, "cat")]
    assert split.records[0].labels.tolist() == [2, 1, 1]


def test_the_splits_own_folder_wins(tmp_path: Path):
    picture(tmp_path, "train2017/a.png", (30, 30))
    picture(tmp_path, "images/a.png", (100, 80))
    for name, width in (("instances_train2017.json", 30), ("instances_train.json", 100)):
        write(tmp_path, document([image()], [box(1, [1, 1, 9, 9])]), name)
        assert read_coco(tmp_path, "train").records[0].width == width


def test_real_data_has_one_dirty_box_in_each_split(bccd: Path):
    expected = {"train": (205, 2804, "BloodImage_00343.jpg", 2288), "val": (87, 1137, "BloodImage_00338.jpg", 3692)}
    splits = {name: read_coco(bccd, name, decode=True) for name in expected}
    for name, (images, boxes, file, id) in expected.items():
        assert (len(splits[name].records), len(ids(splits[name]))) == (images, boxes)
        assert kinds(splits[name]) == [("box-zero-size", file, id)]
        assert [c.name for c in splits[name].classes] == ["Platelets", "RBC", "WBC"]
    check_same_classes(splits["train"], splits["val"])


# Rules for boxes


@pytest.mark.parametrize(
    ("bbox", "kind", "kept"),
    [
        ([-10, 70, 30, 30], "box-clipped", [0, 70, 20, 80]),
        ([90, -5, 50, 15], "box-clipped", [90, 0, 100, 10]),
        ([-5, -5, 1e300, 1e300], "box-clipped", [0, 0, 100, 80]),
        ([100, 10, 5, 5], "box-outside", None),
        ([10, -20, 5, 20], "box-outside", None),
        ([-1e308, 0, 5, 5], "box-outside", None),
        ([10, 10, 0, 5], "box-zero-size", None),
        ([10, 10, 5, -3], "box-zero-size", None),
        ([10, 10, 5, 0.001], "box-zero-size", None),
        ([10, 10, float("nan"), 5], "box-not-finite", None),
        ([float("-inf"), 10, 5, 5], "box-not-finite", None),
        ([None, 10, 5, 5], "box-not-finite", None),
        ([10, 10, 10**400, 5], "box-not-finite", None),
        ([0, 0, 100.005, 80], None, [0, 0, 100, 80]),
        ([0, 0, 100, 80], None, [0, 0, 100, 80]),
    ],
)
def test_box_rules(tmp_path: Path, bbox: list[Any], kind: str | None, kept: list[float] | None):
    split = read_one(tmp_path, box(4, bbox))
    assert kinds(split) == ([(kind, "a.png", 4)] if kind else [])
    assert ids(split) == ([4, 1000] if kept else [1000])
    if kept:
        assert split.records[0].boxes[0].tolist() == pytest.approx(kept)


def test_clipped_box_has_no_more_area_than_is_left(tmp_path: Path):
    split = read_one(tmp_path, box(4, [90, 0, 30, 10], area=300))
    assert split.records[0].areas[0] == 100


def test_unknown_category_and_unknown_image(tmp_path: Path):
    split = read_one(tmp_path, box(4, [1, 1, 9, 9], category_id=99), box(5, [1, 1, 9, 9], image_id=42))
    assert kinds(split) == [("category-unknown", "a.png", 4), ("image-unknown", "instances_train.json", 5)]
    assert ids(split) == [1000]


def test_duplicate_and_missing_annotation_ids_get_new_ones(tmp_path: Path):
    split = read_one(tmp_path, box(1000, [1, 1, 9, 9]), box(None, [2, 2, 9, 9]))
    assert kinds(split) == [("annotation-id-missing", "a.png", None), ("annotation-id-duplicate", "a.png", 1000)]
    assert ids(split) == [1000, 1001, 1002]


def test_polygon_without_box(tmp_path: Path):
    square = [[10, 20, 40, 20, 40, 60], [5, 30, 6, 31, 7, 30]]
    split = read_one(
        tmp_path,
        box(4, None, segmentation=square),
        box(5, [], segmentation=square),
        box(6, None, segmentation={"counts": "abc", "size": [80, 100]}),
        box(7, None),
        box(8, None, segmentation=[[1, 2, 3, 4, 5, float("nan")]]),
        box(9, None, segmentation=[[10, 10, 10, 20, 10, 30]]),
    )
    assert split.records[0].boxes[:2].tolist() == [[5, 20, 40, 60]] * 2
    assert kinds(split) == [
        ("box-from-polygon", "a.png", 4),
        ("box-from-polygon", "a.png", 5),
        ("box-missing", "a.png", 6),
        ("box-missing", "a.png", 7),
        ("box-missing", "a.png", 8),
        ("box-from-polygon", "a.png", 9),
        ("box-zero-size", "a.png", 9),
    ]
    assert ids(split) == [4, 5, 1000]


def test_areas(tmp_path: Path):
    bad = [-1, 0, float("nan"), "big", 1e300]
    split = read_one(tmp_path, *(box(i, [0, 0, 5, 4], area=area) for i, area in enumerate(bad)))
    assert split.records[0].areas.tolist() == [20.0] * 5 + [400.0]  # no area at all is no problem
    assert kinds(split) == [("area-invalid", "a.png", i) for i in range(5)]


def test_crowds_are_kept_as_such(tmp_path: Path):
    split = read_one(tmp_path, box(4, [0, 0, 50, 50], iscrowd=1))
    assert split.problems == () and split.records[0].crowd.tolist() == [True, False]
    assert [a["iscrowd"] for a in as_coco_dict(split)["annotations"]] == [1, 0]


# Rules for images


def read_two(root: Path, other: dict[str, Any], *annotations: Any, **keys: Any) -> CocoSplit:
    """A good image (id 1, one box) and one that is to be looked at."""
    picture(root)
    write(root, document([image(), other], [box(1000, [10, 10, 20, 20]), *annotations]))
    return read_coco(root, "train", **keys)


def test_missing_file_goes_with_its_boxes(tmp_path: Path):
    split = read_two(tmp_path, image(2, "b.png"), box(4, [1, 1, 9, 9], 2), box(5, [1, 1, 0, 0], 2))
    assert kinds(split) == [("file-missing", "b.png", 2)] and ids(split) == [1000]
    assert split.problems[0].detail == "2 boxes, looked in images/"


@pytest.mark.parametrize("name", ["b\0.png", "b" * 5000, "\ud800.png", "sub"])
def test_names_that_are_no_files(tmp_path: Path, name: str):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    assert [found.kind for found in read_two(tmp_path, image(2, name)).problems] == ["file-missing"]


@pytest.mark.parametrize("name", ["../../b.png", "/etc/passwd", "sub/../../../b.png"])
def test_names_that_leave_the_folder_are_rejected(tmp_path: Path, name: str):
    picture(tmp_path / "outside", "b.png")
    split = read_two(tmp_path / "outside" / "data", image(2, name), box(4, [1, 1, 9, 9], 2))
    assert kinds(split) == [("path-outside", name, 2)] and ids(split) == [1000]


def test_names_may_move_inside_the_folder_and_links_may_lead_out(tmp_path: Path):
    root = tmp_path / "data"
    picture(tmp_path / "store", "b.png")
    (root / "images").mkdir(parents=True)
    os.symlink(tmp_path / "store", root / "images" / "linked")
    picture(root, "other/c.png")
    for name in ("linked/b.png", "../other/c.png"):
        split = read_two(root, image(2, name), box(4, [1, 1, 9, 9], 2))
        assert split.problems == () and ids(split) == [1000, 4]


def test_file_that_is_no_image(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.png").write_bytes(b"not a picture")
    split = read_two(tmp_path, image(2, "b.png"), box(4, [1, 1, 9, 9], 2))
    assert kinds(split) == [("file-unreadable", "b.png", 2)] and ids(split) == [1000]


def test_truncated_file_is_found_when_decoding(tmp_path: Path):
    path = picture(tmp_path, "images/b.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 100, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    args = tmp_path, image(2, "b.png"), box(4, [1, 1, 9, 9], 2)
    assert read_two(*args).problems == ()  # the header is sound
    split = read_two(*args, decode=True)
    assert kinds(split) == [("file-unreadable", "b.png", 2)] and ids(split) == [1000]
    assert split.problems[0].detail.startswith("1 boxes, ")


@pytest.mark.parametrize("keys", [{"width": 50, "height": 40}, {"width": None}, {"width": 80, "height": 100}])
def test_declared_size_yields_to_the_file(tmp_path: Path, keys: dict[str, Any]):
    split = read_one(tmp_path, box(4, [60, 50, 30, 20]), listed=image() | keys)
    assert kinds(split) == [("size-differs", "a.png", 1)]
    assert (split.records[0].width, split.records[0].height) == (100, 80)
    assert split.records[0].boxes[0].tolist() == [60, 50, 90, 70]


def test_duplicate_image_id_keeps_the_first(tmp_path: Path):
    picture(tmp_path, "images/b.png")
    split = read_two(tmp_path, image(1, "b.png"), box(4, [1, 1, 9, 9]))
    assert kinds(split) == [("image-id-duplicate", "b.png", 1)]
    assert [record.path.name for record in split.records] == ["a.png"] and ids(split) == [1000, 4]


def test_file_listed_twice_is_kept_twice(tmp_path: Path):
    split = read_two(tmp_path, image(2, "./a.png"), box(4, [1, 1, 9, 9], 2))
    assert kinds(split) == [("file-duplicate", "./a.png", 2)] and len(split.records) == 2


def test_image_without_boxes_is_a_negative(tmp_path: Path):
    picture(tmp_path, "images/b.png")
    split = read_two(tmp_path, image(2, "b.png"))
    assert kinds(split) == [("no-boxes", "b.png", 2)]
    assert split.records[1].boxes.shape == (0, 4) and split.records[1].labels.shape == (0,)


def test_exif_orientation_is_reported(tmp_path: Path):
    exif = Image.Exif()
    exif[274] = 8
    picture(tmp_path, "images/b.jpg", exif=exif)
    split = read_two(tmp_path, image(2, "b.jpg"), box(4, [60, 50, 30, 20], 2))
    assert kinds(split) == [("exif-orientation", "b.jpg", 2)]
    assert (split.records[1].width, split.records[1].height) == (100, 80)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_pixels_are_reported(tmp_path: Path, mode: str):
    picture(tmp_path, "images/b.png", mode=mode)
    split = read_two(tmp_path, image(2, "b.png"), box(4, [60, 50, 30, 20], 2))
    assert kinds(split) == [("pixels-converted", "b.png", 2)] and mode in split.problems[0].detail


# What makes a file unusable


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"images": [,]}', "line 2 column 12: not JSON"),
        ("", "line 1 column 1: not JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"images": ' + "1" * 5000 + "}", "cannot be read as JSON"),
        ("[]", "expected an object with the lists images, annotations, categories, found a list of 0"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": [], "annotations": {}, "categories": []}', "no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "the list 'categories' is empty"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "the list 'images' is empty"),
    ],
)
def test_unusable_files(tmp_path: Path, text: str, message: str):
    write(tmp_path, text)
    with pytest.raises(InputError, match="instances_train.json") as caught:
        read_coco(tmp_path, "train")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "record", "message"),
    [
        ("images", 5, "images[1]: expected an object, found 5"),
        ("images", {"id": "1", "file_name": "b.png"}, "images[1].id: expected an integer, found '1'"),
        ("images", {"id": 2}, "images[1].file_name: expected a file name, found nothing"),
        ("images", {"id": 2, "file_name": "b", "width": "wide"}, "images[1].width: expected an integer, found 'wide'"),
        ("annotations", [], "annotations[1]: expected an object, found a list of 0"),
        ("annotations", box(2, [1, 2, 3]), "annotations[1].bbox: expected [x, y, width, height], found a list of 3"),
        ("annotations", box(2, [1, 2, 3, "4"]), "annotations[1].bbox[3]: expected a number, found '4'"),
        ("annotations", box(2, [1, 2, 3, 4], None), "annotations[1].image_id: expected an integer, found nothing"),
        ("annotations", box(2, [1, 2, 3, 4], 1, True), "annotations[1].category_id: expected an integer, found True"),
        ("annotations", box(2**60, [1, 2, 3, 4]), "annotations[1].id: expected an integer, found an integer beyond"),
        ("annotations", box(2, [1, 2, 3, 4], iscrowd="no"), "annotations[1].iscrowd: expected 0 or 1, found 'no'"),
        ("categories", {"id": 9}, "categories[2].name: expected a text, found nothing"),
        ("categories", {"id": 3, "name": "x"}, "categories[2].id: category id 3 is listed twice"),
    ],
)
def test_records_of_the_wrong_type_are_named(tmp_path: Path, key: str, record: Any, message: str):
    picture(tmp_path)
    whole = json.loads(json.dumps(document([image()], [box(1, [1, 1, 5, 5])])))
    whole[key].append(record)
    write(tmp_path, whole)
    with pytest.raises(InputError) as caught:
        read_coco(tmp_path, "train")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_folder_without_annotations(tmp_path: Path):
    with pytest.raises(InputError, match="no data folder .*nothing"):
        read_coco(tmp_path / "nothing", "train")
    with pytest.raises(InputError, match=r"no COCO annotations in .*annotations: expected instances_val.json or "):
        read_coco(write(tmp_path, document([], [])), "val")
    with pytest.raises(InputError, match="bad split name"):
        read_coco(tmp_path, "../train")


def test_no_usable_image(tmp_path: Path):
    write(tmp_path, document([image(), image(2, "b.png")], []))
    with pytest.raises(InputError, match=r"none of its 2 images can be used: 2 x file-missing .*a.png id 1"):
        read_coco(tmp_path, "train")


def test_splits_with_different_categories(tmp_path: Path):
    picture(tmp_path)
    splits = []
    cow = {"id": 3, "name": "cow"}
    for name, categories in (("train", CATEGORIES), ("val", CATEGORIES[:1]), ("test", [*CATEGORIES[:1], cow])):
        write(tmp_path, document([image()], []) | {"categories": categories}, f"instances_{name}.json")
        splits.append(read_coco(tmp_path, name))
    check_same_classes(splits[0], splits[0])
    with pytest.raises(InputError, match="3 is 'dog' in .*train.json, missing in .*val.json"):
        check_same_classes(splits[1], splits[0])
    with pytest.raises(InputError, match="3 is 'dog' in .*train.json, 'cow' in .*test.json"):
        check_same_classes(splits[0], splits[2])


# Back to COCO


def test_clean_document_goes_through_pycocotools_and_reads_back(tmp_path: Path):
    coco = pytest.importorskip("pycocotools.coco")
    picture(tmp_path, "images/b.png")
    split = read_two(tmp_path, image(9, "b.png"), box(0, [-5, 60, 15, 30], 9, 7), box(0, [1, 1, 5, 5], 77))
    clean = as_coco_dict(split)
    assert [(a["id"], a["image_id"], a["category_id"], a["bbox"]) for a in clean["annotations"]] == [
        (1, 1, 3, [10, 10, 20, 20]),
        (2, 9, 7, [0, 60, 10, 20]),
    ]
    truth = coco.COCO()
    truth.dataset = clean
    truth.createIndex()
    assert truth.getAnnIds(imgIds=[9]) == [2]
    results = truth.loadRes([{"image_id": 9, "category_id": 7, "bbox": [0, 60, 10, 20], "score": 0.5}])
    assert len(results.anns) == 1
    write(tmp_path, json.dumps(clean).replace("images/", ""), "instances_val.json")
    again = read_coco(tmp_path, "val")
    assert again.problems == () and as_coco_dict(again)["annotations"] == clean["annotations"]
