"""Labels of a detector find the categories of a data set."""

from types import SimpleNamespace

import pytest

from fastnas.data.classes import match_classes
from fastnas.data.coco import Category
from fastnas.errors import InputError

SPLIT = SimpleNamespace(classes=(Category(1, "person"), Category(7, "train"), Category(90, "toothbrush")), annotation_file="a.json")


def test_by_name_in_any_order():
    assert match_classes(["train", "unused", "person"], 3, SPLIT) == [7, None, 1]


def test_by_order_without_names():
    assert match_classes([], 3, SPLIT) == [1, 7, 90]


def test_others_are_refused():
    with pytest.raises(InputError, match="4 classes without names, a.json has 3"):
        match_classes([], 4, SPLIT)
    with pytest.raises(InputError, match="know cat, dog$"):
        match_classes(["cat", "dog"], 2, SPLIT)
