"""The boxes of a COCO annotation file: type checks of the records, and the rules for placing one box on its image."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastnas.data.problems import printable
from fastnas.errors import InputError

MIN_SIDE = 1 / 64  # pixels; a box under it counts as having no size
CLIP_TOLERANCE = 0.01  # pixels; rounding of exporters, clipped without a report
MAX_ID = 2**53  # ids beyond it do not survive JSON readers that use doubles

Box = tuple[float, float, float, float]


class Annotation(NamedTuple):
    """One record of `annotations`: types checked, values not. `bbox` is x, y, width, height, or None."""

    id: int | None
    image_id: int
    category_id: int
    bbox: Box | None
    from_polygon: bool
    crowd: bool
    area: float | None  # None: not given; NaN: given, but no number


class Place(NamedTuple):
    """Where a record stands, for error messages: "FILE: annotations[3]"."""

    file: Path
    key: str
    index: int

    def __str__(self) -> str:
        return f"{self.file}: {self.key}[{self.index}]"


def read_annotation(item: Any, where: Place) -> Annotation:
    """Checks the types of one record. Raises InputError that starts with `where`."""
    if not isinstance(item, dict):
        raise wrong_type(where, "an object", item)
    bbox = item.get("bbox")
    given = bbox is not None and bbox != []
    if given and not (isinstance(bbox, list) and len(bbox) == 4):
        raise wrong_type(f"{where}.bbox", "[x, y, width, height]", bbox)
    crowd = item.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise wrong_type(f"{where}.iscrowd", "0 or 1", crowd)
    polygon = None if given else polygon_box(item.get("segmentation"))
    return Annotation(
        id=read_id(item["id"], where, ".id") if item.get("id") is not None else None,
        image_id=read_id(item.get("image_id"), where, ".image_id"),
        category_id=read_id(item.get("category_id"), where, ".category_id"),
        bbox=_coordinates(bbox, where) if given else polygon,
        from_polygon=polygon is not None,
        crowd=bool(crowd),
        area=_area(item["area"]) if "area" in item else None,
    )


def polygon_box(segmentation: Any) -> Box | None:
    """x, y, width, height around COCO polygons ([[x1, y1, x2, y2, ...], ...]); None where there is no whole polygon."""
    if not isinstance(segmentation, list) or not segmentation:
        return None
    values: list[float] = []
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(is_number, polygon)):
            return None
        values += (as_float(value) for value in polygon)
    if not all(map(math.isfinite, values)):
        return None
    x, y = min(values[0::2]), min(values[1::2])
    return x, y, max(values[0::2]) - x, max(values[1::2]) - y


def place_box(bbox: Box, width: int, height: int) -> tuple[Box | None, str | None]:
    """Corners x1, y1, x2, y2 of a box inside an image of `width` x `height` pixels, and the kind of problem met.

    The box is None where the rule is to drop it; else 0 <= x1 < x2 <= width, 0 <= y1 < y2 <= height, also in float32.
    """
    x, y, w, h = bbox
    if not all(map(math.isfinite, bbox)):
        return None, "box-not-finite"
    least = max(MIN_SIDE, max(width, height) * 2.0**-20)  # 8 float32 steps at the far edge of huge images
    if w < least or h < least:
        return None, "box-zero-size"
    right, bottom = x + w, y + h
    corners = max(x, 0.0), max(y, 0.0), min(right, float(width)), min(bottom, float(height))
    if corners[2] - corners[0] < least or corners[3] - corners[1] < least:
        return None, "box-outside"
    beyond = max(-x, -y, right - width, bottom - height)
    return corners, "box-clipped" if beyond > CLIP_TOLERANCE else None


def read_id(value: Any, where: Place, key: str) -> int:
    """An integer id (2.0 counts as 2). Raises InputError that starts with `where` and `key` (".id")."""
    if type(value) is int and -MAX_ID <= value <= MAX_ID:  # nearly always
        return value
    whole = isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and value.is_integer()
    if not whole or abs(value) > MAX_ID:
        raise wrong_type(f"{where}{key}", "an integer", value)
    return int(value)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def as_float(value: float) -> float:
    """`value` as a double; an integer too large for one becomes infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def wrong_type(where: object, expected: str, found: Any) -> InputError:
    """The error for a record of the wrong type: one line that names the record."""
    return InputError(f"{where}: expected {expected}, found {_outline(found)}; correct the annotation file")


def _coordinates(bbox: Sequence[Any], where: Place) -> Box:
    for index, value in enumerate(bbox):
        if value is not None and not is_number(value):
            raise wrong_type(f"{where}.bbox[{index}]", "a number", value)
    x, y, w, h = [math.nan if value is None else as_float(value) for value in bbox]
    return x, y, w, h


def _area(value: Any) -> float:
    return as_float(value) if is_number(value) else math.nan


def _outline(found: Any) -> str:
    # Not repr: of a deep or huge value it is slow and can overflow the stack.
    if found is None:
        return "nothing"
    if isinstance(found, dict):
        return f"an object of {len(found)} keys"
    if isinstance(found, list):
        return f"a list of {len(found)}"
    if isinstance(found, int) and abs(found) > MAX_ID:
        return "an integer beyond 2^53"
    return repr(printable(found, 60)) if isinstance(found, str) else repr(found)
