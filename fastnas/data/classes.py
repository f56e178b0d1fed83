"""Which category of a data set a label of a detector is, where the two were not made for each other."""

from collections.abc import Sequence

from fastnas.data.coco import CocoSplit
from fastnas.errors import InputError


def match_classes(names: Sequence[str], count: int, split: CocoSplit) -> list[int | None]:
    """Category id of labels 1 to `count` of a detector; None: the data has no such class.

    By name where the detector knows the names of its classes, else by order, if the data has as many. Raises InputError.
    """
    if not names:
        if count != len(split.classes):
            raise InputError(
                f"the weights have {count} classes without names, {split.annotation_file} has {len(split.classes)}: "
                "they belong to other data (or name the classes when converting: --classes)"
            )
        return [category.id for category in split.classes]
    ids = {category.name: category.id for category in split.classes}
    if not ids.keys() & set(names):
        few = ", ".join([*names[:5], *["..."] * (len(names) > 5)])
        raise InputError(f"no class of {split.annotation_file} is known to the weights, which know {few}")
    return [ids.get(name) for name in names]
