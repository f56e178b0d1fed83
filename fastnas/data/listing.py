"""The images of a COCO annotation file: finding each file, reading its header, leaving out what cannot be used."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastnas.data.annotations import Place, read_id, wrong_type
from fastnas.data.images import DecodeError, decode_rgb, read_header
from fastnas.data.problems import Problem, problem


@dataclass(frozen=True, slots=True)
class Entry:
    """A listed image that can be used: its name as listed, its file, the file's size, how many boxes name it."""

    id: int
    name: str
    path: Path
    width: int
    height: int
    boxes: int


def image_folders(root: Path, split: str, coco_names: bool) -> list[Path]:
    """Where the images of a split may lie, in the order they are searched."""
    plain = [root / "images", root / "images" / split]
    coco = [root / f"{split}2017", root / "images" / f"{split}2017"]
    found = [folder for folder in (coco + plain if coco_names else plain + coco) if folder.is_dir()]
    return found or [root / "images"]


class Listing:
    """Reads the list `images`: `entries` by image id in file order, None for an image that is left out."""

    def __init__(self, root: Path, folders: list[Path], boxes: Counter[int], problems: list[Problem]):
        self.entries: dict[int, Entry | None] = {}
        self._root, self._folders, self._boxes, self._problems = root, folders, boxes, problems
        self._ids: dict[Path, int] = {}

    def read(self, items: list[Any], file: Path) -> None:
        """Reads all records. Raises InputError for a record of the wrong type."""
        for index, item in enumerate(items):
            where = Place(file, "images", index)
            if not isinstance(item, dict):
                raise wrong_type(where, "an object", item)
            id, name = read_id(item.get("id"), where, ".id"), item.get("file_name")
            if not isinstance(name, str) or not name:
                raise wrong_type(f"{where}.file_name", "a file name", name)
            width, height = (
                None if item.get(key) is None else read_id(item[key], where, f".{key}") for key in ("width", "height")
            )
            if id in self.entries:
                self._report("image-id-duplicate", name, id, f"images[{index}]")
            else:
                self.entries[id] = self._open(id, name, width, height)

    def drop_undecodable(self) -> None:
        """Decodes every image and leaves out those that fail."""

        def check(entry: Entry) -> str | None:
            try:
                decode_rgb(entry.path)
            except DecodeError as error:
                return str(error)
            return None

        usable = [entry for entry in self.entries.values() if entry is not None]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            reasons = list(pool.map(check, usable))
        for entry, reason in zip(usable, reasons, strict=True):
            if reason is not None:
                self._report("file-unreadable", entry.name, entry.id, f"{entry.boxes} boxes, {reason}")
                self.entries[entry.id] = None

    def _open(self, id: int, name: str, width: int | None, height: int | None) -> Entry | None:
        boxes = self._boxes[id]
        path, kind = self._locate(name)
        if path is None:
            tried = ", ".join(f"{folder.relative_to(self._root)}/" for folder in self._folders)
            self._report(kind, name, id, f"{boxes} boxes" + (f", looked in {tried}" if kind == "file-missing" else ""))
            return None
        try:
            header = read_header(path)
        except DecodeError as error:
            self._report("file-unreadable", name, id, f"{boxes} boxes, {error}")
            return None
        if (width, height) != (header.width, header.height):
            declared = "no size" if width is None or height is None else f"{width} x {height}"
            self._report("size-differs", name, id, f"declared {declared}, file {header.width} x {header.height}")
        if header.orientation != 1:
            self._report("exif-orientation", name, id, f"orientation {header.orientation}")
        if header.mode != "RGB":
            self._report("pixels-converted", name, id, f"mode {header.mode}")
        if path in self._ids:
            self._report("file-duplicate", name, id, f"also image id {self._ids[path]}")
        self._ids.setdefault(path, id)
        return Entry(id, name, path, header.width, header.height, boxes)

    def _locate(self, name: str) -> tuple[Path | None, str]:
        # Names may not leave the data folder; links inside it may lead anywhere (image folders are often links).
        base = os.path.abspath(self._root)
        for folder in self._folders:
            path = os.path.abspath(folder / name)
            if os.path.commonpath([base, path]) != base:
                return None, "path-outside"
            if os.path.isfile(path):
                return Path(path), ""
        return None, "file-missing"

    def _report(self, kind: str, name: str, id: int, detail: str) -> None:
        self._problems.append(problem(kind, name, id, detail))
