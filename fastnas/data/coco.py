"""Reads one split of a COCO data set and checks it.

Layouts, `split` being "train" or "val" (format: https://cocodataset.org/#format-data):

    DIR/annotations/instances_{split}.json       with images in DIR/images/ or DIR/images/{split}/
    DIR/annotations/instances_{split}2017.json   with images in DIR/{split}2017/ or DIR/images/{split}2017/

Folders of the other layout are searched after those of its own. Class ids come from the annotation file: label k = 1..K
is the k-th category in order of its id, 0 is background. Data is dirty: what is wrong with an image or a box is in
`CocoSplit.problems` and handled by the rule of its kind (table in `fastnas.data.problems`). What makes the whole file
unusable raises InputError. Only the headers of the images are read here; pixels are decoded when the cache of
`fastnas.data.dataset` fills, or here with `decode=True`.
"""

import itertools
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastnas.data.annotations import Annotation, Place, place_box, read_annotation, read_id, wrong_type
from fastnas.data.listing import Entry, Listing, image_folders
from fastnas.data.problems import Problem, printable, problem, summarize, write_problems
from fastnas.errors import InputError

__all__ = [
    "Category", "CocoSplit", "Problem", "Record",
    "as_coco_dict", "check_same_classes", "read_coco", "summarize", "write_problems",
]  # fmt: skip

LISTS = ("images", "annotations", "categories")
FLOAT32_RANGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Category:
    """A class as the annotation file has it: its own id and name."""

    id: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One usable image and its n boxes. Arrays are read-only.

    boxes: float32 [n, 4], x1 y1 x2 y2 in pixels of the file, 0 <= x1 < x2 <= width, 0 <= y1 < y2 <= height.
    labels: int64 [n], 1..K. crowd: bool [n], regions to ignore, never training targets.
    areas: float32 [n], square pixels as annotated. annotation_ids: int64 [n], unique in the split.
    """

    image_id: int
    path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    annotation_ids: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class CocoSplit:
    """One checked split: `classes[k - 1]` is the category of label k; `records` in the order of the annotation file."""

    root: Path
    split: str
    annotation_file: Path
    classes: tuple[Category, ...]
    records: tuple[Record, ...]
    problems: tuple[Problem, ...]


def read_coco(root: Path | str, split: str, decode: bool = False) -> CocoSplit:
    """Reads and checks one split. `decode=True` also decodes every image (slow), to find truncated files now.

    Raises InputError: no such folder or annotation file, no JSON, a record of the wrong type, no usable image.
    """
    root = Path(root)
    file = find_annotation_file(root, split)
    images, annotations, categories = _load(file)
    classes = _read_classes(categories, file)
    boxes = [read_annotation(item, Place(file, "annotations", i)) for i, item in enumerate(annotations)]
    problems: list[Problem] = []
    folders = image_folders(root, split, coco_names=file.stem.endswith("2017"))
    listing = Listing(root, folders, Counter(box.image_id for box in boxes), problems)
    listing.read(images, file)
    if decode:
        listing.drop_undecodable()
    usable = [entry for entry in listing.entries.values() if entry is not None]
    if not usable:
        raise InputError(_nothing_usable(file, len(images), problems))
    labels = {category.id: label for label, category in enumerate(classes, 1)}
    grouped = _group(boxes, listing.entries, labels, file, problems)
    records = tuple(_record(entry, grouped.get(entry.id, []), problems) for entry in usable)
    return CocoSplit(root, split, file, classes, records, tuple(problems))


def check_same_classes(train: CocoSplit, val: CocoSplit) -> None:
    """Raises InputError where two splits do not have the same categories (ids and names)."""
    for one, other in ((train, val), (val, train)):
        names = {category.id: category.name for category in other.classes}
        for category in one.classes:
            if names.get(category.id) != category.name:
                found = repr(printable(names[category.id])) if category.id in names else "missing"
                raise InputError(
                    f"categories differ between the splits: {category.id} is {printable(category.name)!r} in "
                    f"{one.annotation_file}, {found} in {other.annotation_file}; give both the same categories"
                )


def as_coco_dict(split: CocoSplit) -> dict[str, Any]:
    """The checked split as a COCO document for evaluators: original image and category ids, annotation ids from 1."""
    images, annotations = [], []
    for record in split.records:
        name = os.path.relpath(record.path, split.root).replace(os.sep, "/")
        images.append({"id": record.image_id, "file_name": name, "width": record.width, "height": record.height})
        columns = (record.boxes, record.labels, record.areas, record.crowd)
        for (x1, y1, x2, y2), label, area, crowd in zip(*(column.tolist() for column in columns), strict=True):
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": record.image_id,
                "category_id": split.classes[label - 1].id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
                "iscrowd": int(crowd),
            })  # fmt: skip
    categories = [{"id": category.id, "name": category.name} for category in split.classes]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def find_annotation_file(root: Path, split: str) -> Path:
    """The annotation file of a split. Raises InputError that says what was expected where."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", split):
        raise InputError(f"bad split name {printable(split)!r}: use train or val")
    if not root.is_dir():
        raise InputError(f"no data folder {root}: name a folder that holds annotations/ and images/")
    names = f"instances_{split}.json", f"instances_{split}2017.json"
    for name in names:
        if (root / "annotations" / name).is_file():
            return root / "annotations" / name
    raise InputError(
        f"no COCO annotations in {root / 'annotations'}: expected {names[0]} or {names[1]}; "
        f"bring your data into COCO form, see 'fastnas search --help'"
    )


def _load(file: Path) -> list[list[Any]]:
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        where = f"{file} line {error.lineno} column {error.colno}"
        raise InputError(f"{where}: not JSON ({error.msg}); write the file again") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: not UTF-8 text; write the file again as JSON") from None
    except (ValueError, RecursionError) as error:  # integers of thousands of digits, thousands of nested brackets
        raise InputError(f"{file}: cannot be read as JSON ({type(error).__name__}); write the file again") from None
    if not isinstance(document, dict):
        raise wrong_type(file, f"an object with the lists {', '.join(LISTS)}", document)
    for key in LISTS:
        if not isinstance(document.get(key), list):
            raise InputError(f"{file}: no list {key!r}; a COCO annotation file has the lists {', '.join(LISTS)}")
    return [document[key] for key in LISTS]


def _read_classes(items: list[Any], file: Path) -> tuple[Category, ...]:
    found: dict[int, Category] = {}
    for index, item in enumerate(items):
        where = Place(file, "categories", index)
        if not isinstance(item, dict):
            raise wrong_type(where, "an object", item)
        if not isinstance(item.get("name"), str):
            raise wrong_type(f"{where}.name", "a text", item.get("name"))
        category = Category(read_id(item.get("id"), where, ".id"), item["name"])
        if category.id in found:
            raise InputError(f"{where}.id: category id {category.id} is listed twice; give each category its own id")
        found[category.id] = category
    if not found:
        raise InputError(f"{file}: the list 'categories' is empty; list the classes with their ids")
    return tuple(found[id] for id in sorted(found))


_Kept = tuple[Annotation, int, int]  # annotation, label, id that is unique in the split


def _group(
    boxes: list[Annotation],
    entries: dict[int, Entry | None],
    labels: dict[int, int],
    file: Path,
    problems: list[Problem],
) -> dict[int, list[_Kept]]:
    """Boxes of usable images with a known category, by image id."""
    grouped: dict[int, list[_Kept]] = {}
    seen: set[int] = set()
    fresh = itertools.count(max((box.id for box in boxes if box.id is not None), default=0) + 1)
    for box in boxes:
        if box.image_id not in entries:
            problems.append(problem("image-unknown", file.name, box.id, f"image id {box.image_id}"))
            continue
        entry = entries[box.image_id]
        if entry is None:
            continue  # counted in the problem of its image
        if box.category_id not in labels:
            problems.append(problem("category-unknown", entry.name, box.id, f"category id {box.category_id}"))
            continue
        id = box.id
        if id is None or id in seen:
            kind, id = "annotation-id-missing" if id is None else "annotation-id-duplicate", next(fresh)
            problems.append(problem(kind, entry.name, box.id, f"now {id}"))
        seen.add(id)
        grouped.setdefault(entry.id, []).append((box, labels[box.category_id], id))
    return grouped


def _record(entry: Entry, boxes: list[_Kept], problems: list[Problem]) -> Record:
    def report(kind: str, id: int | None, detail: str) -> None:
        problems.append(problem(kind, entry.name, id, detail))

    rows: list[tuple[tuple[float, float, float, float], int, bool, float, int]] = []
    for box, label, id in boxes:
        if box.bbox is None:
            report("box-missing", box.id, "")
            continue
        if box.from_polygon:
            report("box-from-polygon", box.id, "")
        corners, kind = place_box(box.bbox, entry.width, entry.height)
        if kind is not None:
            shown = "x {:g} y {:g} w {:g} h {:g}".format(*box.bbox)
            report(kind, box.id, f"{shown} on {entry.width} x {entry.height}")
        if corners is None:
            continue
        whole = (corners[2] - corners[0]) * (corners[3] - corners[1])
        area = whole if box.area is None else box.area
        if not FLOAT32_RANGE[0] <= area <= FLOAT32_RANGE[1]:
            report("area-invalid", box.id, f"area {area:g}")
            area = whole
        rows.append((corners, label, box.crowd, min(area, whole) if kind == "box-clipped" else area, id))
    if not rows:
        report("no-boxes", entry.id, f"{entry.boxes} listed" if entry.boxes else "")
    corners, labels, crowd, areas, ids = zip(*rows, strict=True) if rows else ((),) * 5
    return Record(
        entry.id, entry.path, entry.width, entry.height,
        boxes=_fixed(corners, np.float32).reshape(-1, 4), labels=_fixed(labels, np.int64),
        crowd=_fixed(crowd, np.bool_), areas=_fixed(areas, np.float32), annotation_ids=_fixed(ids, np.int64),
    )  # fmt: skip


def _fixed(values: Any, kind: type[np.generic]) -> np.ndarray:
    array = np.array(values, kind)
    array.setflags(write=False)
    return array


def _nothing_usable(file: Path, listed: int, problems: list[Problem]) -> str:
    if not listed:
        return f"{file}: the list 'images' is empty; list the images with id and file_name"
    return f"{file}: none of its {listed} images can be used: {'; '.join(summarize(problems, examples=1))}"
