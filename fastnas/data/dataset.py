"""Decoded images of one split at one size, shared by all trainings of a process, and batches of them.

Every image is decoded once, when it is first needed, and kept as bytes in memory; images beyond the limit of the cache
are decoded each time. A file that does not decode is reported once, in `DetectionData.problems`, and then left out.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastnas.data.augment import DRAWS, MIN_AREA_LEFT, Augment, apply_to_boxes, apply_to_image
from fastnas.data.coco import CocoSplit, Problem, Record, read_coco
from fastnas.data.images import DecodeError, decode_rgb
from fastnas.data.prefetch import prefetch
from fastnas.data.problems import problem, summarize
from fastnas.errors import InputError

CACHE_BYTES = 2**31
DECODERS = min(8, os.cpu_count() or 1)


@dataclass(slots=True)
class Target:
    """Boxes of one image in pixels of the batch's image: float32 [n, 4] x1 y1 x2 y2, labels int64 [n] 1..K, and crowd
    regions float32 [m, 4] that are neither object nor background."""

    boxes: Tensor
    labels: Tensor
    ignore: Tensor


@dataclass(slots=True)
class Batch:
    """images: uint8 [B, 3, h, w] in channels-last memory. scales: float32 [B, 2] (sx, sy), size of the batch's image
    over size of the file: boxes found on an image that was not augmented, divided by it, are pixels of the file."""

    images: Tensor
    targets: list[Target]
    image_ids: list[int]
    scales: Tensor


class Undecodable:
    """What the caches of one split have found since it was read; shared by all sizes, so a file is reported once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.image_ids: set[int] = set()
        self._lock = threading.Lock()

    def add(self, record: Record, split: CocoSplit, reason: str) -> None:
        with self._lock:
            if record.image_id not in self.image_ids:
                self.image_ids.add(record.image_id)
                name = os.path.relpath(record.path, split.root)
                detail = f"{len(record.boxes)} boxes, {reason}"
                self.problems.append(problem("file-unreadable", name, record.image_id, detail))


class _Cache:
    """Images of a split as uint8 [h, w, 3]; the first ones asked for are kept, as many as fit."""

    def __init__(self, split: CocoSplit, size: tuple[int, int], limit: int, undecodable: Undecodable):
        self.split, self.size, self.undecodable = split, size, undecodable
        room = min(len(split.records), limit // (size[0] * size[1] * 3))
        self._pixels = np.empty((room, *size, 3), np.uint8)  # memory is taken page by page, as it is written
        self._slots = [-1] * len(split.records)
        self._used = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        return self._used * self.size[0] * self.size[1] * 3

    def fill(self, indices: list[int]) -> None:
        """Decodes and keeps the images that are not kept yet, as far as there is room."""
        with self._lock:
            bad = self.undecodable.image_ids
            missing = [i for i in indices if self._slots[i] < 0 and self.split.records[i].image_id not in bad]
            missing = missing[: len(self._pixels) - self._used]
            if not missing:
                return
            with ThreadPoolExecutor(DECODERS) as pool:
                for index, image in zip(missing, pool.map(self._decode, missing), strict=True):
                    if image is not None:
                        self._pixels[self._used] = image
                        self._slots[index] = self._used
                        self._used += 1

    def get(self, indices: list[int], pool: ThreadPoolExecutor) -> list[np.ndarray | None]:
        """The images (read-only); None for one that does not decode."""
        found = [self._pixels[self._slots[i]] if self._slots[i] >= 0 else None for i in indices]
        missing = [k for k, image in enumerate(found) if image is None]
        for k, image in zip(missing, pool.map(self._decode, [indices[k] for k in missing]), strict=True):
            found[k] = image
        return found

    def _decode(self, index: int) -> np.ndarray | None:
        record = self.split.records[index]
        if record.image_id in self.undecodable.image_ids:
            return None
        try:
            return decode_rgb(record.path, self.size)
        except DecodeError as error:
            self.undecodable.add(record, self.split, str(error))
            return None


class DetectionData:
    """A split, or a part of one, at one image size (h, w).

    `problems` lists the files that turned out not to decode; `split` is the data without them. Images and boxes are
    scaled to exactly the size, width and height independently.
    """

    def __init__(
        self,
        split: CocoSplit,
        size: tuple[int, int],
        cache_bytes: int = CACHE_BYTES,
        undecodable: Undecodable | None = None,
    ):
        if min(size) < 1:
            raise InputError(f"image size is {size[0]} x {size[1]}; both sides must be positive")
        self.size = int(size[0]), int(size[1])
        self._cache = _Cache(split, self.size, cache_bytes, undecodable or Undecodable())
        self._scales = [(self.size[1] / record.width, self.size[0] / record.height) for record in split.records]
        self._boxes = [
            record.boxes * np.array(scale * 2, np.float32)
            for record, scale in zip(split.records, self._scales, strict=True)
        ]
        for boxes in self._boxes:  # float32 products may pass the border by one step
            np.clip(boxes, 0, np.array([self.size[1], self.size[0]] * 2, np.float32), out=boxes)
        self._indices = list(range(len(split.records)))
        self._limit = cache_bytes
        self._sizes: OrderedDict[tuple[int, int], DetectionData] = OrderedDict({self.size: self})  # of all images; shared

    @property
    def problems(self) -> list[Problem]:
        """Files found not to decode so far, each once."""
        return self._cache.undecodable.problems

    @property
    def split(self) -> CocoSplit:
        """What this data holds, without the files found not to decode: the truth for an evaluator."""
        records = tuple(self._cache.split.records[i] for i in self._usable())
        return replace(self._cache.split, records=records)

    @property
    def cached_bytes(self) -> int:
        return self._cache.used_bytes

    def __len__(self) -> int:
        return len(self._usable())

    def subset(self, fraction: float, seed: int = 0) -> "DetectionData":
        """A random part of the data (at least one image) that shares the cache.

        With the same seed, a smaller fraction is contained in a larger one.
        """
        if not 0.0 < fraction <= 1.0:
            raise InputError(f"data fraction is {fraction}, choose above 0 and up to 1")
        order = torch.randperm(len(self._indices), generator=torch.Generator().manual_seed(seed)).tolist()
        kept = sorted(order[: max(1, round(fraction * len(order)))])
        part = object.__new__(DetectionData)
        part.__dict__.update(self.__dict__)
        part._indices = [self._indices[k] for k in kept]
        return part

    def at(self, size: tuple[int, int]) -> "DetectionData":
        """The same images at another size. The sizes used least recently are forgotten when all together pass the cache's limit."""
        if size not in self._sizes:
            split, undecodable = self._cache.split, self._cache.undecodable
            self._sizes[size] = DetectionData(split, size, self._limit, undecodable)
        self._sizes.move_to_end(size)
        while len(self._sizes) > 1 and sum(data.cached_bytes for data in self._sizes.values()) > self._limit:
            self._sizes.popitem(last=False)
        sized = object.__new__(DetectionData)
        sized.__dict__.update(self._sizes[size].__dict__)
        sized._indices, sized._sizes = self._indices, self._sizes
        return sized

    def fill(self) -> None:
        """Decodes what fits the cache. `batches` does it as well; call it to know `problems` and `len` beforehand."""
        self._cache.fill(self._indices)

    def batch_count(self, batch_size: int, drop_last: bool = False) -> int:
        """How many batches an epoch has. The last, smaller one is never dropped where it is the only one.

        Raises InputError where no image decodes.
        """
        self.fill()
        if not self._usable():
            file, count = self._cache.split.annotation_file, len(self._indices)
            raise InputError(f"{file}: none of {count} images decodes, first {summarize(self.problems, 1)[0]}")
        whole, rest = divmod(len(self), batch_size)
        return whole + (rest > 0 and (whole == 0 or not drop_last))

    def batches(
        self,
        batch_size: int,
        rng: torch.Generator | None = None,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """One epoch: shuffled with `rng`, in the order of the split without it; prepared two batches ahead.

        The numbers are drawn from `rng` now, so a training may go on using it. `augment` needs `rng`. An image beyond
        the cache that turns out not to decode makes its batch smaller. Close the iterator when stopping early.
        """
        if batch_size < 1:
            raise InputError(f"batch size is {batch_size}, choose 1 or more")
        if augment is not None and rng is None:
            raise InputError("augmentation needs a random generator (rng)")
        count = self.batch_count(batch_size, drop_last)
        usable = self._usable()
        order, draws = usable, None
        if rng is not None:
            order = [usable[k] for k in torch.randperm(len(usable), generator=rng).tolist()]
            draws = torch.rand(len(usable), DRAWS, generator=rng, dtype=torch.float64) if augment else None
        return prefetch(self._epoch(order, count, batch_size, augment, draws))

    def _usable(self) -> list[int]:
        records, bad = self._cache.split.records, self._cache.undecodable.image_ids
        return [i for i in self._indices if records[i].image_id not in bad] if bad else self._indices

    def _epoch(
        self, order: list[int], count: int, batch_size: int, augment: Augment | None, draws: Tensor | None
    ) -> Iterator[Batch]:
        with ThreadPoolExecutor(DECODERS) as pool:
            for start in range(0, count * batch_size, batch_size):
                indices = order[start : start + batch_size]
                rows = draws[start : start + batch_size].tolist() if draws is not None else [None] * len(indices)
                items = zip(indices, rows, self._cache.get(indices, pool), strict=True)
                decoded = [(index, row, image) for index, row, image in items if image is not None]
                if decoded:
                    yield self._batch(decoded, augment)

    def _batch(self, items: list[tuple[int, list[float] | None, np.ndarray]], augment: Augment | None) -> Batch:
        height, width = self.size
        pixels = torch.empty((len(items), height, width, 3), dtype=torch.uint8)
        targets = []
        for out, (index, row, image) in zip(pixels, items, strict=True):
            record, boxes = self._cache.split.records[index], self._boxes[index]
            labels, crowd = record.labels, record.crowd
            if augment is None or row is None:
                out.numpy()[:] = image
            else:
                plan = augment.plan(row, self.size)
                apply_to_image(plan, torch.from_numpy(image), out)
                boxes, left = apply_to_boxes(plan, boxes, self.size)
                kept = left >= np.where(crowd, np.finfo(np.float32).tiny, MIN_AREA_LEFT)
                boxes, labels, crowd = boxes[kept], labels[kept], crowd[kept]
            targets.append(_target(boxes, labels, crowd))
        records = self._cache.split.records
        return Batch(
            images=pixels.permute(0, 3, 1, 2),
            targets=targets,
            image_ids=[records[index].image_id for index, _, _ in items],
            scales=torch.tensor([self._scales[index] for index, _, _ in items], dtype=torch.float32),
        )


def _target(boxes: np.ndarray, labels: np.ndarray, crowd: np.ndarray) -> Target:
    # torch.tensor copies: a training may change its targets in place.
    if not crowd.any():
        return Target(torch.tensor(boxes), torch.tensor(labels), torch.zeros(0, 4))
    return Target(torch.tensor(boxes[~crowd]), torch.tensor(labels[~crowd]), torch.tensor(boxes[crowd]))


_memo: OrderedDict[tuple[object, ...], DetectionData] = OrderedDict()
_splits: dict[tuple[str, str], tuple[object, CocoSplit, Undecodable]] = {}  # by folder and split, with its stamp
_memo_lock = threading.Lock()


def get_data(root: Path | str, split: str, size: tuple[int, int], cache_bytes: int = CACHE_BYTES) -> DetectionData:
    """The data of a split at a size, one object for all callers in the process while the annotations are unchanged.

    The sizes used least recently are forgotten when all caches together pass `cache_bytes`. Raises InputError as
    `read_coco` does.
    """
    with _memo_lock:
        source, stamp = (os.path.abspath(root), split), _stamp(Path(root))
        if source not in _splits or _splits[source][0] != stamp:
            _splits[source] = stamp, read_coco(root, split), Undecodable()
        key = (*source, stamp, tuple(size), cache_bytes)
        if key not in _memo:
            _, found, undecodable = _splits[source]
            _memo[key] = DetectionData(found, size, cache_bytes, undecodable)
        _memo.move_to_end(key)
        while len(_memo) > 1 and sum(data.cached_bytes for data in _memo.values()) > cache_bytes:
            _memo.popitem(last=False)
        return _memo[key]


def _stamp(root: Path) -> tuple[tuple[str, int, int], ...]:
    files = sorted((root / "annotations").glob("instances_*.json"))
    return tuple((file.name, stat.st_mtime_ns, stat.st_size) for file in files for stat in [file.stat()])
