"""Training and validation data of a training, checked together."""

from pathlib import Path

from fastnas.data.coco import check_same_classes
from fastnas.data.dataset import DetectionData, get_data
from fastnas.errors import InputError


def open_pair(root: Path | str, size: tuple[int, int]) -> tuple[DetectionData, DetectionData]:
    """The splits `train` and `val` at an image size (h, w). Raises InputError as `read_coco`, for other classes, without a box."""
    train, val = get_data(root, "train", size), get_data(root, "val", size)
    check_same_classes(train.split, val.split)
    for data in (train, val):
        data.batch_count(1)  # raises where no image decodes
        if not any((~record.crowd).any() for record in data.split.records):
            raise InputError(f"{data.split.annotation_file} has no usable box: there is nothing to learn or to evaluate")
    return train, val
