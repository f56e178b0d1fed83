"""Weights files: safetensors that name the blueprint and the classes they belong to."""

import json
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from fastnas.blueprint import Blueprint, parse
from fastnas.errors import InputError
from fastnas.files import write_atomic


def save_weights(path: Path, model: nn.Module, blueprint: Blueprint, classes: list[str]) -> None:
    """Writes the state dict of `model` atomically."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"format": "fastnas", "blueprint": blueprint.text, "classes": json.dumps(classes)}
    write_atomic(path, safetensors.torch.save(tensors, metadata))


def load_weights(path: Path | str) -> tuple[Blueprint, list[str], dict[str, Tensor]]:
    """Reads (blueprint, class names, state dict). Raises InputError if the file is missing, damaged or of another program."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise InputError(f"no weights file {path}") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"cannot read the weights {path}: {error}") from None
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
