"""Weights files: safetensors that name the blueprint and the classes they belong to."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from fastnas.blueprint import Blueprint, parse
from fastnas.errors import InputError
from fastnas.files import write_atomic
from fastnas.models.assemble import build
from fastnas.models.detector import Detector


def save_weights(path: Path, model: nn.Module, blueprint: Blueprint, classes: list[str]) -> None:
    """Writes the state dict of `model` atomically."""
    save_state(path, model.state_dict(), blueprint, classes)


def save_state(path: Path | str, state: Mapping[str, Tensor], blueprint: Blueprint, classes: list[str]) -> None:
    """Writes tensors of a detector, all or some, atomically. Raises InputError where there is no such folder."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    metadata = {"format": "fastnas", "blueprint": blueprint.text, "classes": json.dumps(classes)}
    try:
        write_atomic(path, safetensors.torch.save(tensors, metadata))
    except FileNotFoundError:
        raise InputError(f"no folder {Path(path).parent}: make it, or name another --out") from None


def load_detector(path: Path | str, blueprint: Blueprint | None = None) -> tuple[Detector, list[str]]:
    """The detector of a weights file in eval mode, and its class names.

    blueprint: other than the file's, for the same weights (another input size, other numbers of proposals or detections).
    Raises InputError as `load_weights`, or where the file does not hold every weight of the detector.
    """
    own, classes, state = load_weights(path)
    detector = build(blueprint or own)
    wanted = detector.state_dict()
    if missing := [name for name in wanted if name not in state]:
        what = "only a part of the detector: train from it with --init" if blueprint in (None, own) else "another blueprint"
        raise InputError(f"{path} holds {what} ({len(missing)} of {len(wanted)} tensors are missing, first {missing[0]})")
    wrong = [name for name, tensor in wanted.items() if state[name].shape != tensor.shape]
    if wrong or len(state) > len(wanted):
        name = wrong[0] if wrong else next(name for name in state if name not in wanted)
        why = f"is {list(state[name].shape)}, not {list(wanted[name].shape)}" if wrong else "has no place in it"
        raise InputError(f"{path} does not fit the blueprint {(blueprint or own).text}: {name} {why}")
    detector.load_state_dict(state)
    return detector.eval(), classes


def load_weights(path: Path | str) -> tuple[Blueprint, list[str], dict[str, Tensor]]:
    """Reads (blueprint, class names, state dict). Raises InputError if the file is missing, damaged or of another program."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise InputError(f"no weights file {path}") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"cannot read the weights {path}: {error}; expected .safetensors of train, search or convert") from None
    if metadata.get("format") != "fastnas":
        raise InputError(f"{path} does not name its blueprint: it was not written by fastnas")
    try:
        blueprint, classes = parse(metadata["blueprint"]), json.loads(metadata["classes"])
    except (KeyError, ValueError, RecursionError, InputError) as error:
        reason = error if isinstance(error, InputError) else "no blueprint or no classes in it"
        raise InputError(f"{path} is damaged, its description cannot be read: {reason}") from None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise InputError(f"{path} is damaged, its description cannot be read: the classes are no list of names")
    return blueprint, classes, state
