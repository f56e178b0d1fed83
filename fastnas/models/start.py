"""Starting from the weights of a file: the ancestor of a study, or a single training.

The file may hold any detector, or a backbone alone (`fastnas convert`), and is copied block by block of the same name. Its backbone
must be the same one, whole; the other blocks get what fits and keep fresh weights where nothing does.
"""

from pathlib import Path

import torch
from torch import Tensor

from fastnas.blueprint import Blueprint, Lineage
from fastnas.errors import InputError
from fastnas.models.assemble import build
from fastnas.models.detector import Detector
from fastnas.models.inherit import Inherited, inherit
from fastnas.models.weights import load_weights


def start_from(detector: Detector, path: Path | str) -> Inherited:
    """Copies the weights of a file into `detector`. Raises InputError as `check_start`."""
    state = _fitting_state(detector, path)
    owners = {name: name for name in detector.blocks if any(key.startswith(f"{name}.") for key in state)}
    return inherit(detector, state, Lineage(blocks=owners))


def check_start(blueprint: Blueprint, path: Path | str) -> None:
    """Raises InputError where the file is no weights file, or does not hold the whole backbone of the blueprint."""
    with torch.device("meta"):
        _fitting_state(build(blueprint), path)


def _fitting_state(detector: Detector, path: Path | str) -> dict[str, Tensor]:
    own, _, state = load_weights(path)
    for name, module in detector.blocks.items():
        if not name.startswith("backbone."):
            continue
        wanted = {f"{name}.{key}": tensor.shape for key, tensor in module.state_dict().items()}
        found = {key: state[key].shape for key in state if key.startswith(f"{name}.")}
        if wanted != found:
            key = next(key for key in (*wanted, *found) if wanted.get(key) != found.get(key))
            why = f"has shape {list(found[key])}" if key in found else "is missing"
            blueprint = detector.network.blueprint.text
            raise InputError(f"{path} does not hold the backbone of {blueprint}: {key} {why} (it is of {own.text})")
    return state
