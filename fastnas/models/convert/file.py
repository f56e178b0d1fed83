"""Checkpoint file -> weights file."""

from pathlib import Path

import torch

from fastnas.blueprint import Blueprint
from fastnas.errors import InputError
from fastnas.models.assemble import build
from fastnas.models.convert.checkpoint import read_checkpoint
from fastnas.models.convert.coco import CLASSES
from fastnas.models.convert.copy import Converted, convert
from fastnas.models.convert.formats import find_format
from fastnas.models.weights import save_state


def convert_file(
    checkpoint: Path | str, out: Path | str, blueprint: Blueprint | None = None, classes: list[str] | None = None,
    eps: float | None = None,
) -> tuple[Blueprint, list[str], Converted]:  # fmt: skip
    """Writes what fits of a checkpoint as weights of `blueprint` (None: what the checkpoint tells), and nothing else.

    classes: names of labels 1, 2, ... (None: COCO's where a whole detector has 90 of them, else unknown). eps: see `convert`.
    Raises InputError: no checkpoint, no format, no blueprint told, a backbone that does not fit whole, a wrong number of names.
    """
    source = read_checkpoint(checkpoint)
    try:
        format = find_format(source)
        blueprint = blueprint or format.blueprint(source)
        with torch.device("meta"):
            detector = build(blueprint)
        done = convert(source, detector, format, eps).check_backbone()
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from None
    if classes is None:
        classes = list(CLASSES) if done.complete and blueprint.classes == len(CLASSES) else []
    elif len(classes) != blueprint.classes:
        raise InputError(f"{len(classes)} names of classes are given, the detector has {blueprint.classes}")
    save_state(out, done.state, blueprint, classes)
    return blueprint, classes, done
