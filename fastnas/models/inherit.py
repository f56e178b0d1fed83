"""Weight inheritance: a child starts from its parent's weights, block by block along the lineage.

SP-NAS (section 3): children "fully inherit the weights before the morphism". Rules:
a tensor is copied where the lineage names an origin block and the shapes agree; a new residual block starts as an identity
(weight of its last norm = 0), so a network that was only expanded computes exactly what its parent did; a residual block whose
branch could not be copied whole also starts silent; a new projection keeps norm weight 1; a new pyramid level starts with a
lateral of zero, so the finer levels see what they saw before.

An ancestor, or a single training, may start from the weights of any detector or backbone, block by block of the same name: its
backbone must be the same one, whole; the other blocks get what fits and keep fresh weights where nothing does.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fastnas.blueprint import Blueprint, Lineage
from fastnas.errors import FastnasError, InputError
from fastnas.models.assemble import build
from fastnas.models.detector import Detector
from fastnas.models.parts.fpn import FpnLevel
from fastnas.models.parts.serial import Residual
from fastnas.models.weights import load_weights


@dataclass
class Inherited:
    """What became of every tensor of the child: names copied, left fresh, and those whose shapes differ from the origin's."""

    copied: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def to_dict(self) -> dict:
        return {"copied": len(self.copied), "fresh": len(self.fresh), "mismatched": self.mismatched}


@torch.no_grad()
def inherit(child: Detector, parent: dict[str, Tensor], lineage: Lineage) -> Inherited:
    """Copies the parent's state dict into `child` along `lineage.blocks`. Raises FastnasError if nothing fits."""
    report = Inherited()
    pyramid = any(isinstance(module, FpnLevel) and name in lineage.blocks for name, module in child.blocks.items())
    for name, module in child.blocks.items():
        origin = lineage.blocks.get(name)
        missing = 0
        for key, tensor in module.state_dict(keep_vars=True).items():
            full = f"{name}.{key}"
            source = parent.get(f"{origin}.{key}") if origin else None
            if source is None:
                report.fresh.append(full)
            elif source.shape != tensor.shape:
                report.mismatched.append(full)
            else:
                tensor.copy_(source)
                report.copied.append(full)
                continue
            missing += not key.startswith("downsample.")
        _quieten(module, new=pyramid and origin is None, incomplete=missing > 0)
    if not report.copied:
        raise FastnasError(f"no weight of candidate {lineage.parent} fits its child: the weights belong to another network")
    return report


def start_from(detector: Detector, path: Path | str) -> Inherited:
    """Copies the weights of a file into `detector` by names of blocks. Raises InputError as `check_start`."""
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
            why = f"has {list(found[key])}" if key in found else "is missing"
            raise InputError(
                f"{path} does not hold the backbone of {detector.network.blueprint.text}: {key} {why} (it is of {own.text})"
            )
    return state


def _quieten(module: nn.Module, new: bool, incomplete: bool) -> None:
    """Lets a block that could not be inherited whole start without disturbing the rest. new: a new level of a known pyramid."""
    if isinstance(module, Residual) and incomplete:
        nn.init.zeros_(module.last_norm.weight)
        nn.init.zeros_(module.last_norm.bias)
    if isinstance(module, FpnLevel) and new:
        nn.init.zeros_(module.lateral.weight)
        nn.init.zeros_(module.lateral.bias)
