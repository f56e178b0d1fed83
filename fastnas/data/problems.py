"""What can be wrong with a data set, and the rule that is applied to it.

Nothing is dropped silently: every problem is reported once, with the file, the id and what was done. A problem with an
image carries the image id, a problem with a box the annotation id.

| kind | what | rule |
|---|---|---|
| file-missing | the image file does not exist | image left out with its boxes |
| file-unreadable | the image file is no image, is truncated, or has over 100 million pixels | image left out with its boxes |
| path-outside | the file name leads out of the data folder | image left out with its boxes |
| image-id-duplicate | two images have the same id | first kept with all boxes of the id, later one left out |
| file-duplicate | one file is listed under two image ids | both kept, as COCO tools do |
| size-differs | declared width and height are not the file's | the file's size is used; boxes are pixels of the file |
| exif-orientation | the file asks to be rotated when shown | pixels and boxes used as stored, as COCO tools do |
| pixels-converted | grey, palette, transparent, 16-bit or CMYK pixels | converted to 8-bit RGB |
| no-boxes | no usable box on the image | image kept as a negative |
| image-unknown | a box names an image id that is not listed | box dropped |
| category-unknown | a box names a category id that is not listed | box dropped |
| box-missing | neither a box nor a polygon to take it from | box dropped |
| box-from-polygon | no box, but a polygon | box taken around the polygon |
| box-not-finite | a coordinate is NaN, infinite or null | box dropped |
| box-zero-size | width or height is zero (under 1/64 pixel) or negative | box dropped |
| box-outside | the box lies wholly outside the image | box dropped |
| box-clipped | the box lies partly outside the image (by over 0.01 pixel) | box clipped to the image |
| area-invalid | the area is not a positive number | area of the box is used |
| annotation-id-duplicate | two boxes have the same id | both kept, later one gets a new id |
| annotation-id-missing | a box has no id | box kept, gets a new id |
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from fastnas.errors import InputError
from fastnas.files import write_atomic

IMAGE_LEFT_OUT = "image left out with its boxes"
BOX_DROPPED = "box dropped"

RULES: dict[str, str] = {
    "file-missing": IMAGE_LEFT_OUT,
    "file-unreadable": IMAGE_LEFT_OUT,
    "path-outside": IMAGE_LEFT_OUT,
    "image-id-duplicate": "first kept with all boxes of the id, later one left out",
    "file-duplicate": "both kept, as COCO tools do",
    "size-differs": "the file's size is used; boxes are pixels of the file",
    "exif-orientation": "pixels and boxes used as stored, as COCO tools do",
    "pixels-converted": "converted to 8-bit RGB",
    "no-boxes": "image kept as a negative",
    "image-unknown": BOX_DROPPED,
    "category-unknown": BOX_DROPPED,
    "box-missing": BOX_DROPPED,
    "box-from-polygon": "box taken around the polygon",
    "box-not-finite": BOX_DROPPED,
    "box-zero-size": BOX_DROPPED,
    "box-outside": BOX_DROPPED,
    "box-clipped": "box clipped to the image",
    "area-invalid": "area of the box is used",
    "annotation-id-duplicate": "both kept, later one gets a new id",
    "annotation-id-missing": "box kept, gets a new id",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a data set. `file`: the image as listed (the annotation file where none is known)."""

    kind: str
    file: str
    id: int | None
    detail: str
    action: str


def problem(kind: str, file: str, id: int | None, detail: str) -> Problem:
    """A problem of a known kind, with the action that its rule takes."""
    return Problem(kind, printable(file), id, detail, RULES[kind])


def summarize(problems: Iterable[Problem], examples: int = 2) -> list[str]:
    """One line for each kind, most frequent first: count, kind, rule and the first examples."""
    kinds: dict[str, list[Problem]] = {}
    for found in problems:
        kinds.setdefault(found.kind, []).append(found)
    lines = []
    for kind, group in sorted(kinds.items(), key=lambda item: -len(item[1])):
        shown = "; ".join(_example(found) for found in group[:examples])
        more = f"; and {len(group) - examples} more" if len(group) > examples else ""
        lines.append(f"{len(group)} x {kind} ({group[0].action}): {shown}{more}")
    return lines


def write_problems(path: Path | str, problems: Iterable[Problem]) -> None:
    """Writes the whole list as JSON lines (keys kind, file, id, detail, action), atomically."""
    text = "".join(json.dumps(asdict(found)) + "\n" for found in problems)
    try:
        write_atomic(path, text)
    except OSError as error:
        raise InputError(f"cannot write the problems to {path}: {error.strerror}; choose another file") from None


def printable(text: str, limit: int = 200) -> str:
    """`text` on one line that any terminal can show: control characters and lone surrogates escaped, long text cut."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _example(found: Problem) -> str:
    name = found.file if found.id is None else f"{found.file} id {found.id}"
    return f"{name}, {found.detail}" if found.detail else name
