"""The one way from a checkpoint to our tensors, for every format.

A layer (convolution, norm, linear) is copied whole or not at all. Batch norms of another eps get a variance that makes up for the
difference, so that they compute the same. Nothing is guessed from shapes: every tensor of ours has a name in the format.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastnas.errors import InputError
from fastnas.models.convert.checkpoint import unwrap
from fastnas.models.convert.format import Format, Source, split
from fastnas.models.convert.formats import find_format
from fastnas.models.detector import Detector

COUNTER = "num_batches_tracked"  # of a batch norm; frozen ones have none
ABSENT, REST = "not in the checkpoint", "the rest of its layer does not fit"
PARTS = ("backbone", "neck", "rpn", "head")


@dataclass(frozen=True)
class Converted:
    """What became of a checkpoint.

    state: what was copied, under our names. left: why the others of ours were not, by name; unused: tensors of the checkpoint that
    have no place. rescaled: batch norms whose variance makes up for another eps.
    """

    format: str
    state: dict[str, Tensor]
    left: dict[str, str]
    unused: list[str]
    rescaled: int = 0

    @property
    def complete(self) -> bool:
        return not self.left

    def parts(self) -> dict[str, tuple[int, int]]:
        """(copied, all) tensors of ours by part of the detector."""
        copied, left = (Counter(name.split(".")[0] for name in names) for names in (self.state, self.left))
        return {part: (copied[part], copied[part] + left[part]) for part in PARTS if copied[part] + left[part]}

    def absent(self) -> dict[str, int]:
        """How many tensors of ours the checkpoint does not have, by part of the detector."""
        return dict(Counter(name.split(".")[0] for name, why in self.left.items() if why == ABSENT))

    def misfits(self) -> dict[str, str]:
        """Why the checkpoint's own tensors were not copied, under our names."""
        return {name: why for name, why in self.left.items() if why != ABSENT}

    def check_backbone(self) -> "Converted":
        """Raises InputError where nothing fits, or only a part of the backbone."""
        copied, total = self.parts().get("backbone", (0, 0))
        if copied and copied == total:
            return self
        name, why = next(((name, why) for name, why in self.left.items() if name.startswith("backbone.")), ("backbone", "has none"))
        found = f"only {copied} of the {total} tensors of the backbone are" if self.state else "nothing that fits the blueprint is"
        raise InputError(f"{found} in this {self.format} checkpoint (first misfit {name}: {why}); name its blueprint (--blueprint)")

    def to_dict(self) -> dict:
        parts = {part: {"copied": copied, "of": total} for part, (copied, total) in self.parts().items()}
        return {"format": self.format, "parts": parts, "left": self.left, "unused": self.unused, "rescaled_norms": self.rescaled}


def convert(source: Source, detector: Detector, format: Format | None = None, eps: float | None = None) -> Converted:
    """Tensors of a checkpoint under our names for `detector`, which may be on the meta device and is not changed.

    format: None: the one that its names tell. eps: of its batch norms, None: as the format says. Raises InputError: no format.
    """
    source = unwrap(source)
    format = format or find_format(source)
    eps = format.eps(source) if eps is None else eps
    state: dict[str, Tensor] = {}
    left: dict[str, str] = {}
    used: set[str] = set()
    rescaled = 0
    modules = detector.blocks
    for block in detector.network.blocks:
        module = modules.get(block.name)
        layers = dict(module.named_modules()) if module is not None else {}
        for layer, tensors in _layers(module).items():
            theirs = {key: _found(source, format.names(detector.network, block, key)) for key in tensors}
            used.update(filter(None, theirs.values()))
            reasons = {key: _misfit(source, theirs[key], key, tensor) for key, tensor in tensors.items()}
            if _is_group_norm(layer, tensors) and _found(source, format.names(detector.network, block, f"{layer}.running_mean")):
                reasons = dict.fromkeys(tensors, "a batch norm in the checkpoint")
            if any(reasons.values()):
                absent = set(reasons.values()) <= {ABSENT, ""}
                left.update({f"{block.name}.{key}": why or (ABSENT if absent else REST) for key, why in reasons.items()})
                continue
            copied = {key: source[name] if name else torch.zeros((), dtype=torch.int64) for key, name in theirs.items()}
            if shift := _shift(layers.get(layer), eps):
                copied[f"{layer}.running_var"] = (copied[f"{layer}.running_var"].double() + shift).float()
                rescaled += 1
            state.update({f"{block.name}.{key}": tensor for key, tensor in copied.items()})
    return Converted(format.name, state, left, [name for name in source if name not in used], rescaled)


def _layers(module: nn.Module | None) -> dict[str, dict[str, Tensor]]:
    """Tensors of a block by layer, then by key; a parameter that belongs to no layer is its own."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in (module.state_dict() if module is not None else {}).items():
        layers.setdefault(split(key)[0] or key, {})[key] = tensor
    return layers


def _found(source: Source, names: list[str]) -> str | None:
    return next((name for name in names if name in source), None)


def _is_group_norm(layer: str, tensors: dict[str, Tensor]) -> bool:
    weight = tensors.get(f"{layer}.weight")
    return weight is not None and weight.ndim == 1 and f"{layer}.running_mean" not in tensors


def _misfit(source: Source, name: str | None, key: str, tensor: Tensor) -> str:
    """Why tensor `key` of ours cannot be copied; empty where it can."""
    if name is None:
        return "" if key.endswith(COUNTER) else ABSENT
    if source[name].shape != tensor.shape:
        return f"shape {list(tensor.shape)}, in the checkpoint {list(source[name].shape)} ({name})"
    return ""


def _shift(norm: nn.Module | None, eps: float | None) -> float:
    """What to add to the variance of a batch norm so that another eps makes no difference."""
    return eps - norm.eps if eps is not None and isinstance(norm, nn.BatchNorm2d) else 0.0
