"""The built-in generated detection set: colored shapes on cluttered backgrounds, in COCO form, for demos and tests.

A pure function of its parameters: the same seed gives the same bytes (with the same versions of NumPy and Pillow). The
folder carries `generated.json`, written with `"complete": false` before the first image and with the digest of all
files after the last: a set whose generation was interrupted is recognized and built again.
"""

import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastnas.data.drawing import CLASSES, render
from fastnas.errors import FastnasError, InputError
from fastnas.files import write_atomic

VERSION = 1  # raised whenever the same parameters give other bytes
MANIFEST = "generated.json"
SPLITS = ("train", "val")


@dataclass(frozen=True, slots=True)
class _Parameters:
    version: int
    seed: int
    train: int
    val: int
    size: tuple[int, int]
    classes: int


def generate(
    root: Path | str,
    seed: int = 0,
    train: int = 256,
    val: int = 96,
    size: tuple[int, int] = (160, 192),
    classes: int = 4,
) -> Path:
    """Writes the set of `train` + `val` images of `size` (height, width) pixels to `root` and returns `root`.

    A complete set with the same parameters is kept, an incomplete one is built again. A folder that holds anything else
    raises InputError and is not touched. Raises FastnasError when writing fails half-way.
    """
    root = Path(root)
    parameters = _checked(_Parameters(VERSION, seed, train, val, (int(size[0]), int(size[1])), classes))
    try:
        if _is_complete(root, parameters):
            return root
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "images").mkdir(exist_ok=True)
        _write_manifest(root, parameters, None)
    except OSError as error:
        raise InputError(f"cannot write a generated set to {root}: {error.strerror}; choose another folder") from None
    try:
        for split in SPLITS:
            _write_split(root, parameters, split)
        _write_manifest(root, parameters, _digest(root, parameters))
    except OSError as error:
        raise FastnasError(f"generated set in {root} is incomplete: {error.strerror}; run again to finish") from None
    return root


def _checked(parameters: _Parameters) -> _Parameters:
    limits = (
        ("seed", parameters.seed, 0, 2**63 - 1),
        ("train", parameters.train, 1, 10**6),
        ("val", parameters.val, 1, 10**6),
        ("height", parameters.size[0], 48, 4096),
        ("width", parameters.size[1], 48, 4096),
        ("classes", parameters.classes, 1, len(CLASSES)),
    )
    for name, value, low, high in limits:
        if not low <= value <= high:
            raise InputError(f"generated set: {name} is {value}, choose {low} to {high}")
    return parameters


def _is_complete(root: Path, parameters: _Parameters) -> bool:
    """False where the set is to be built. Raises InputError where the folder holds something else."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise InputError(f"{root} is a file; choose a folder for the generated set")
    manifest = _read_manifest(root / MANIFEST)
    if manifest is None:
        # A kill before the manifest leaves these two empty folders and perhaps the manifest's temporary file.
        if all(_is_leftover(path) for path in root.iterdir()):
            return False
        raise InputError(f"{root} holds something else than a generated set; choose a new or empty folder")
    if manifest.get("parameters") != _as_json(parameters):
        raise InputError(f"{root} holds a generated set of other parameters; choose another folder or delete it")
    return manifest.get("complete") is True and manifest.get("digest") == _digest(root, parameters)


def _is_leftover(path: Path) -> bool:
    if path.name in ("annotations", "images") and path.is_dir():
        return not any(path.iterdir())
    return path.name.startswith(f".{MANIFEST}.") and path.suffix == ".tmp"


def _read_manifest(file: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    ours = isinstance(manifest, dict) and manifest.get("generator") == "fastnas shapes"
    return manifest if ours else None


def _write_manifest(root: Path, parameters: _Parameters, digest: str | None) -> None:
    content = {
        "generator": "fastnas shapes",
        "parameters": _as_json(parameters),
        "complete": digest is not None,
        "digest": digest,
    }
    write_atomic(root / MANIFEST, json.dumps(content, indent=1) + "\n")


def _as_json(parameters: _Parameters) -> dict[str, Any]:
    return asdict(parameters) | {"size": list(parameters.size)}


def _write_split(root: Path, parameters: _Parameters, split: str) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    ids = itertools.count(1)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        drawn = pool.map(lambda index: _draw(root, parameters, split, index), range(getattr(parameters, split)))
        for index, instances in enumerate(drawn):
            id = index + 1 + (parameters.train if split == "val" else 0)
            name = _name(split, index)
            images.append({"id": id, "file_name": name, "width": parameters.size[1], "height": parameters.size[0]})
            annotations += ({"id": next(ids), "image_id": id, "iscrowd": 0, **instance} for instance in instances)
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES[: parameters.classes], 1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    write_atomic(_annotation_file(root, split), json.dumps(document))


def _draw(root: Path, parameters: _Parameters, split: str, index: int) -> list[dict[str, Any]]:
    """Writes one image from its own random stream; returns category_id, bbox and area of its shapes."""
    rng = np.random.default_rng([parameters.seed, SPLITS.index(split), index])
    pixels, instances = render(rng, parameters.size, parameters.classes)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    # Not fsynced one by one: the digest in the manifest finds a file that a power cut has torn.
    file = root / "images" / _name(split, index)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, file)
    return [
        {
            "category_id": instance.label,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": int(instance.mask.sum()),
        }
        for instance in instances
        for x1, y1, x2, y2 in [instance.box]
    ]


def _digest(root: Path, parameters: _Parameters) -> str | None:
    """SHA-256 over all files of the set; None where one is missing."""
    digest = hashlib.sha256()
    try:
        for file in _files(root, parameters):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    except OSError:
        return None
    return digest.hexdigest()


def _files(root: Path, parameters: _Parameters) -> Iterator[Path]:
    for split in SPLITS:
        yield _annotation_file(root, split)
        yield from (root / "images" / _name(split, index) for index in range(getattr(parameters, split)))


def _annotation_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def _name(split: str, index: int) -> str:
    return f"{split}_{index:06d}.jpg"
