"""Weight inheritance: a child starts from its parent's weights, block by block along the lineage.

SP-NAS (section 3): children "fully inherit the weights before the morphism". Rules:
a tensor is copied where the lineage names an origin block and the shapes agree; a new residual block starts as an identity
(weight of its last norm = 0), so a network that was only expanded computes exactly what its parent did; a residual block whose
branch could not be copied whole also starts silent, and both hold for inverted residuals that add their input; a new projection
keeps norm weight 1; a new pyramid level starts with a lateral of zero, so the finer levels see what they saw before; a new
connector feeds back nothing, so a stage with new copies computes what it did without.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastnas.blueprint import Lineage
from fastnas.errors import FastnasError
from fastnas.models.detector import Detector
from fastnas.models.parts.fpn import FpnLevel
from fastnas.models.parts.mobile import InvertedBottleneck
from fastnas.models.parts.parallel import Connector
from fastnas.models.parts.serial import Residual


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


def _quieten(module: nn.Module, new: bool, incomplete: bool) -> None:
    """Lets a block that could not be inherited whole start without disturbing the rest. new: a new level of a known pyramid."""
    if incomplete and (isinstance(module, Residual) or isinstance(module, InvertedBottleneck) and module.adds):
        nn.init.zeros_(module.last_norm.weight)
        nn.init.zeros_(module.last_norm.bias)
    if isinstance(module, Connector) and incomplete:
        nn.init.zeros_(module.feedback.norm.weight)
        nn.init.zeros_(module.feedback.norm.bias)
    if isinstance(module, FpnLevel) and new:
        last = getattr(module.lateral, "norm", module.lateral)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
