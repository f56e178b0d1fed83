"""Decoded data: the cache, batches, augmented targets, subsets, files that do not decode."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastnas.data import dataset
from fastnas.data.augment import Augment
from fastnas.data.coco import as_coco_dict, read_coco
from fastnas.data.dataset import Batch, DetectionData, get_data
from fastnas.errors import InputError

SIZE = (24, 32)
IMAGE = SIZE[0] * SIZE[1] * 3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten noisy 64 x 72 pictures; image id i has the grey level 20 * i, one box of class i % 2, and 3 has a crowd."""
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    for id in range(10):
        noise = np.random.default_rng(id).integers(0, 9, (72, 64, 3))
        Image.fromarray((noise + 20 * id).astype(np.uint8)).save(tmp_path / "images" / f"{id}.png")
        images.append({"id": id, "file_name": f"{id}.png", "width": 64, "height": 72})
        annotations.append({"id": id, "image_id": id, "category_id": 5 + id % 2, "bbox": [id, 2 * id, 32, 36]})
    annotations.append({"id": 99, "image_id": 3, "category_id": 5, "bbox": [0, 0, 64, 36], "iscrowd": 1})
    categories = [{"id": 5, "name": "even"}, {"id": 6, "name": "odd"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return tmp_path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that have been decoded, in the order of decoding."""
    names: list[str] = []
    real = dataset.decode_rgb

    def counted(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
        names.append(path.name)
        return real(path, size)

    monkeypatch.setattr(dataset, "decode_rgb", counted)
    return names


def truncate(root: Path, id: int) -> None:
    path = root / "images" / f"{id}.png"
    path.write_bytes(path.read_bytes()[:4000])


def data(root: Path, **keys) -> DetectionData:
    return DetectionData(read_coco(root, "train"), SIZE, **keys)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_ids(batches) -> list[int]:
    return [id for batch in batches for id in batch.image_ids]


def test_batch_in_order(root: Path):
    batches = list(data(root).batches(4))
    assert [batch.image_ids for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    batch = batches[0]
    assert batch.images.shape == (4, 3, *SIZE) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for id, image in zip(batch.image_ids, batch.images, strict=True):
        assert 20 * id <= image.min() and image.max() <= 20 * id + 9
    assert batch.scales.dtype == torch.float32
    assert torch.allclose(batch.scales, torch.tensor([[32 / 64, 24 / 72]] * 4))
    target = batch.targets[3]
    assert target.boxes.tolist() == pytest.approx(torch.tensor([[1.5, 2.0, 17.5, 14.0]]))
    assert target.labels.tolist() == [2] and target.labels.dtype == torch.int64
    assert target.ignore.tolist() == [[0, 0, 32, 12]] and target.ignore.dtype == torch.float32
    assert batch.targets[2].ignore.shape == (0, 4)
    assert torch.allclose(target.boxes / batch.scales[3].repeat(2), torch.tensor([[3.0, 6, 35, 42]]))


def test_targets_are_copies(root: Path):
    whole = data(root)
    next(whole.batches(1)).targets[0].boxes.fill_(7)
    next(whole.batches(1)).images.fill_(7)
    batch = next(whole.batches(1))
    assert batch.targets[0].boxes.tolist() == [[0, 0, 16, 12]] and batch.images.unique().numel() > 3


def test_every_image_is_decoded_once(root: Path, decoded: list[str]):
    whole = data(root)
    assert decoded == [] and whole.cached_bytes == 0
    for epoch in range(3):
        assert sorted(all_ids(whole.batches(4, seeded(epoch), Augment()))) == list(range(10))
    assert sorted(decoded) == [f"{id}.png" for id in range(10)]
    assert whole.cached_bytes == 10 * IMAGE


def test_images_beyond_the_cache_are_decoded_each_time(root: Path, decoded: list[str]):
    plain = {id: image for b in data(root).batches(4) for id, image in zip(b.image_ids, b.images, strict=True)}
    decoded.clear()
    small = data(root, cache_bytes=6 * IMAGE + 5)
    for epoch in range(2):
        for batch in small.batches(4, seeded(epoch)):
            for id, image in zip(batch.image_ids, batch.images, strict=True):
                assert torch.equal(image, plain[id])
    assert small.cached_bytes == 6 * IMAGE and len(decoded) == 6 + 2 * 4


def test_generator_decides_everything_and_at_once(root: Path):
    whole, augment = data(root), Augment(0.5, 0.5, 0.3, (0.75, 1.3))
    rng = seeded()
    epoch = whole.batches(3, rng, augment)
    state = rng.get_state()
    one = list(epoch)
    assert torch.equal(rng.get_state(), state)  # drawn when asked for, not while iterating
    other = list(whole.batches(3, seeded(), augment))
    third = list(whole.batches(3, seeded(1), augment))
    assert all_ids(one) == all_ids(other) != all_ids(third)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images)
        assert all(torch.equal(x.boxes, y.boxes) for x, y in zip(a.targets, b.targets, strict=True))


def test_augmented_targets_are_sound(root: Path):
    whole, augment = data(root), Augment(0.5, 0.5, 0.3, (0.4, 2.5))
    counts = set()
    for epoch in range(20):
        for batch in whole.batches(5, seeded(epoch), augment):
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            for id, target in zip(batch.image_ids, batch.targets, strict=True):
                counts.add(len(target.boxes))
                assert len(target.boxes) == len(target.labels) <= 1 and len(target.ignore) <= (id == 3)
                assert all(label == 1 + id % 2 for label in target.labels)
                for x1, y1, x2, y2 in torch.cat([target.boxes, target.ignore]).tolist():
                    assert 0 <= x1 < x2 <= SIZE[1] and 0 <= y1 < y2 <= SIZE[0]
    assert counts == {0, 1}  # some boxes were cropped away


def test_drop_last(root: Path):
    whole = data(root)
    assert (whole.batch_count(4), whole.batch_count(4, True), whole.batch_count(5, True)) == (3, 2, 2)
    assert [len(batch.image_ids) for batch in whole.batches(4, seeded(), drop_last=True)] == [4, 4]
    assert whole.batch_count(64, True) == 1
    assert [len(batch.image_ids) for batch in whole.batches(64, seeded(), drop_last=True)] == [10]


def test_subsets_share_the_cache_and_nest(root: Path, decoded: list[str]):
    whole = data(root)
    small, large = whole.subset(0.3, seed=4), whole.subset(0.7, seed=4)
    assert (len(small), len(large), len(whole)) == (3, 7, 10)
    few = set(all_ids(small.batches(2)))
    assert len(few) == 3 == len(decoded)
    assert few < set(all_ids(large.batches(2))) and len(decoded) == 7
    assert set(all_ids(whole.batches(2))) == set(range(10)) and len(decoded) == 10
    assert {record.image_id for record in small.split.records} == few
    assert len(whole.subset(0.0001)) == 1 and len(whole.subset(1.0)) == 10
    seeds = {tuple(all_ids(whole.subset(0.5, seed).batches(9))) for seed in range(8)}
    assert len(seeds) > 3
    for fraction in (0.0, 1.5):
        with pytest.raises(InputError, match="data fraction"):
            whole.subset(fraction)


@pytest.mark.parametrize("cache_bytes", [2**20, 0])
def test_file_that_does_not_decode_is_reported_once_and_left_out(root: Path, cache_bytes: int):
    truncate(root, 4)
    truncate(root, 7)
    whole = data(root, cache_bytes=cache_bytes)
    part = whole.subset(1.0)
    for _ in range(3):
        assert all_ids(part.batches(4)) == [0, 1, 2, 3, 5, 6, 8, 9]
    assert sorted((p.kind, p.file, p.id, p.action) for p in whole.problems) == [
        ("file-unreadable", f"images/{id}.png", id, "image left out with its boxes") for id in (4, 7)
    ]
    assert len(whole) == 8 and whole.batch_count(4) == 2
    assert [record.image_id for record in whole.split.records] == [0, 1, 2, 3, 5, 6, 8, 9]
    assert {a["image_id"] for a in as_coco_dict(whole.split)["annotations"]}.isdisjoint({4, 7})
    assert sorted(all_ids(whole.batches(3, seeded(), Augment()))) == [0, 1, 2, 3, 5, 6, 8, 9]


def test_nothing_decodes(root: Path):
    for id in range(10):
        truncate(root, id)
    with pytest.raises(InputError, match=r"none of 10 images decodes, first 10 x file-unreadable .*png id "):
        data(root).batches(4)


def test_no_thread_is_left_after_stopping_early(root: Path):
    before = threading.active_count()
    epoch = data(root).batches(1, seeded())
    next(epoch)
    epoch.close()
    assert threading.active_count() == before


def test_bad_arguments(root: Path):
    with pytest.raises(InputError, match="batch size"):
        data(root).batches(0)
    with pytest.raises(InputError, match="rng"):
        data(root).batches(1, None, Augment())
    with pytest.raises(InputError, match="image size"):
        DetectionData(read_coco(root, "train"), (0, 32))


def test_get_data_gives_one_object_until_the_annotations_change(root: Path, decoded: list[str]):
    one = get_data(root, "train", SIZE)
    assert get_data(str(root), "train", SIZE) is one
    other = get_data(root, "train", (48, 64))
    assert other is not one and get_data(root, "val", SIZE) is not one
    truncate(root, 6)
    one.fill()
    other.fill()
    assert one.problems is other.problems and len(one.problems) == 1 and len(other) == 9
    file = root / "annotations" / "instances_train.json"
    file.write_text(file.read_text() + " ")
    assert get_data(root, "train", SIZE) is not one


def test_get_data_forgets_the_size_used_longest_ago(root: Path):
    limit = 15 * IMAGE
    sizes = [SIZE, (SIZE[1], SIZE[0])]
    first, second = (get_data(root, "train", size, limit) for size in sizes)
    first.fill()
    second.fill()
    assert get_data(root, "train", sizes[1], limit) is second
    assert get_data(root, "train", sizes[0], limit) is not first


def test_real_data(bccd: Path):
    whole = DetectionData(read_coco(bccd, "val"), (60, 80))
    batches: list[Batch] = list(whole.batches(16, seeded(), Augment(0.5, 0.5, 0.2, (0.75, 1.3))))
    assert sum(len(batch.image_ids) for batch in batches) == 87 and whole.problems == []
    plain = list(whole.batches(16))
    assert sum(len(target.boxes) for batch in plain for target in batch.targets) == 1137


def test_another_size_is_the_same_data(root: Path, decoded: list[str]):
    data = DetectionData(read_coco(root, "train"), SIZE)
    part = data.subset(0.5, seed=3)
    for whole in (data, part):
        other, fresh = whole.at((12, 20)), DetectionData(read_coco(root, "train"), (12, 20))
        assert other.size == (12, 20) and len(other) == len(whole) and whole.size == SIZE
        ids = [image_id for batch in other.batches(3) for image_id in batch.image_ids]
        assert ids == [image_id for batch in whole.batches(3) for image_id in batch.image_ids]
        images = {i: (image, t) for b in fresh.batches(3) for i, image, t in zip(b.image_ids, b.images, b.targets, strict=True)}
        for batch in other.batches(3):
            for image_id, image, target in zip(batch.image_ids, batch.images, batch.targets, strict=True):
                assert torch.equal(image, images[image_id][0]) and torch.equal(target.boxes, images[image_id][1].boxes)
    before = len(decoded)
    assert len(list(data.at((12, 20)).batches(3))) and len(list(data.at(SIZE).batches(3))) and len(decoded) == before, "kept"
    assert data.at(SIZE).size == SIZE and data.at(SIZE)._indices == data._indices


def test_sizes_beyond_the_limit_are_forgotten(root: Path):
    data = DetectionData(read_coco(root, "train"), SIZE, cache_bytes=12 * IMAGE)
    data.fill()
    for height in (12, 16, 20, 24):
        data.at((height, 16)).fill()
        data.at((height, 16))
    assert sum(kept.cached_bytes for kept in data._sizes.values()) <= 12 * IMAGE and (24, 16) in data._sizes
