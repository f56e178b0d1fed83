"""The generated set: determinism, boxes against masks, interrupted generation, folders that are not ours."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastnas.data import shapes
from fastnas.data.coco import check_same_classes, read_coco
from fastnas.data.drawing import CLASSES, outline, render
from fastnas.data.shapes import generate
from fastnas.errors import FastnasError, InputError

SMALL = {"train": 6, "val": 3, "size": (96, 128)}


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_same_seed_same_bytes(tmp_path: Path):
    one, other, third = (generate(tmp_path / name, seed, **SMALL) for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    assert content(one) == content(other)
    assert content(one).keys() == content(third).keys()
    assert all(data != content(third)[name] for name, data in content(one).items())


def test_it_reads_through_the_coco_reader(tmp_path: Path):
    root = generate(tmp_path / "set", 1, train=40, val=12, classes=6)
    train, val = (read_coco(root, split, decode=True) for split in ("train", "val"))
    check_same_classes(train, val)
    assert [c.name for c in train.classes] == list(CLASSES[:6])
    assert (len(train.records), len(val.records)) == (40, 12)
    assert {found.kind for found in train.problems + val.problems} <= {"no-boxes"}
    assert {record.image_id for record in train.records}.isdisjoint(record.image_id for record in val.records)
    labels = Counter(label for record in train.records for label in record.labels.tolist())
    assert set(labels) == set(range(1, 7))
    boxes = np.concatenate([record.boxes for record in train.records])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert 6 <= sides.min() < 14 and 60 < sides.max() <= 82  # half of the shorter side is 80 pixels
    pixels = np.asarray(Image.open(train.records[0].path))
    assert pixels.shape == (160, 192, 3)


def test_boxes_are_tight_around_the_visible_masks():
    hidden = 0
    for seed in range(40):
        pixels, instances = render(np.random.default_rng(seed), (120, 150), 8)
        assert pixels.shape == (120, 150, 3) and pixels.dtype == np.uint8
        covered = np.zeros((120, 150), int)
        for instance in instances:
            x1, y1, x2, y2 = instance.box
            outside = instance.mask.copy()
            outside[y1:y2, x1:x2] = False
            assert not outside.any()
            assert instance.mask[y1, :].any() and instance.mask[y2 - 1, :].any()
            assert instance.mask[:, x1].any() and instance.mask[:, x2 - 1].any()
            covered += instance.mask
        assert covered.max(initial=0) <= 1  # a pixel shows one shape
        boxes = [instance.box for instance in instances]
        hidden += sum(_overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert hidden > 20  # shapes do overlap


def _overlap(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def test_masks_are_where_the_shapes_are_painted(monkeypatch: pytest.MonkeyPatch):
    from fastnas.data import drawing

    monkeypatch.setattr(drawing, "_surface", lambda rng, behind, alpha, label, classes: np.full_like(behind, 255))
    monkeypatch.setattr(drawing, "_background", lambda rng, size: np.zeros((*size, 3), np.float32))
    monkeypatch.setattr(drawing, "_camera", lambda rng, canvas: canvas.astype(np.uint8))
    for seed in range(10):
        pixels, instances = render(np.random.default_rng(seed), (120, 150), 8)
        painted = pixels[..., 0] > 127
        masks = np.any([instance.mask for instance in instances], axis=0) if instances else np.zeros((120, 150), bool)
        assert not (masks & ~painted).any()
        # Where two edges meet, neither shape covers half of the pixel but both together do.
        assert (painted & ~masks).sum() <= 0.02 * painted.sum() + 3


def test_some_images_are_empty_and_most_are_not():
    counts = [len(render(np.random.default_rng(seed), (64, 64), 4)[1]) for seed in range(120)]
    assert 1 <= counts.count(0) < 30 and max(counts) >= 5


@pytest.mark.parametrize("name", CLASSES)
def test_outlines_fill_the_unit_disc(name: str):
    reach = np.linalg.norm(outline(name)[0][0], axis=1)
    assert 0.9 < reach.max() <= 1.01


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


@pytest.mark.parametrize("last", [0, 2, 7])
def test_interrupted_generation_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int):
    whole = content(generate(tmp_path / "whole", **SMALL))
    draw, drawn = shapes._draw, []

    def dying(*args):
        if len(drawn) >= last:
            raise Killed
        drawn.append(args)
        return draw(*args)

    monkeypatch.setattr(shapes, "_draw", dying)
    with pytest.raises(Killed):
        generate(tmp_path / "set", **SMALL)
    assert json.loads((tmp_path / "set" / "generated.json").read_text())["complete"] is False
    monkeypatch.setattr(shapes, "_draw", draw)
    assert content(generate(tmp_path / "set", **SMALL)) == whole


def test_killed_before_the_first_file(tmp_path: Path):
    (tmp_path / "set" / "annotations").mkdir(parents=True)
    (tmp_path / "set" / ".generated.json.x1.tmp").write_bytes(b"{")
    generate(tmp_path / "set", **SMALL)
    assert len(read_coco(tmp_path / "set", "train").records) == 6


def test_complete_set_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = generate(tmp_path / "set", **SMALL)
    monkeypatch.setattr(shapes, "_draw", None)  # would fail if it were called
    assert generate(str(root), **SMALL) == root


@pytest.mark.parametrize("harm", ["missing", "torn"])
def test_damaged_set_is_built_again(tmp_path: Path, harm: str):
    root = generate(tmp_path / "set", **SMALL)
    whole, victim = content(root), root / "images" / "val_000001.jpg"
    victim.unlink() if harm == "missing" else victim.write_bytes(victim.read_bytes()[:50])
    generate(root, **SMALL)
    assert content(root) == whole


def test_other_folders_are_not_touched(tmp_path: Path, bccd: Path):
    root = generate(tmp_path / "set", **SMALL)
    before = content(root)
    with pytest.raises(InputError, match="generated set of other parameters"):
        generate(root, seed=1, **SMALL)
    assert content(root) == before
    mine = tmp_path / "mine"
    (mine / "images").mkdir(parents=True)
    (mine / "images" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="holds something else"):
        generate(mine, **SMALL)
    shutil.copytree(bccd / "annotations", mine / "annotations")
    (mine / "generated.json").write_text("{}")
    before = content(mine)
    with pytest.raises(InputError, match="holds something else"):
        generate(mine, **SMALL)
    assert content(mine) == before
    with pytest.raises(InputError, match="is a file"):
        generate(mine / "generated.json", **SMALL)
    with pytest.raises(InputError, match="cannot write a generated set to .*: Not a directory"):
        generate(mine / "generated.json" / "set", **SMALL)


def test_full_disk_leaves_a_set_that_can_be_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    draw = shapes._draw

    def full(root: Path, parameters, split: str, index: int):
        if (split, index) == ("val", 1):
            raise OSError(28, "No space left on device")
        return draw(root, parameters, split, index)

    monkeypatch.setattr(shapes, "_draw", full)
    with pytest.raises(FastnasError, match="is incomplete: No space left on device; run again"):
        generate(tmp_path / "set", **SMALL)
    monkeypatch.setattr(shapes, "_draw", draw)
    assert content(generate(tmp_path / "set", **SMALL)) == content(generate(tmp_path / "whole", **SMALL))


@pytest.mark.parametrize("bad", [{"classes": 0}, {"classes": 9}, {"train": 0}, {"size": (10, 200)}, {"seed": -1}])
def test_bad_parameters(tmp_path: Path, bad: dict):
    with pytest.raises(InputError, match="generated set: "):
        generate(tmp_path / "set", **(SMALL | bad))
    assert not (tmp_path / "set").exists()
