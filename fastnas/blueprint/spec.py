"""Spec: what one block is, with its parameters, MACs and output shapes. Each part's file holds its own specs.

A spec is a frozen dataclass. `fastnas.models` builds a module from it and turns it into ONNX, `fastnas.latency` prices it.
Shapes are full tensor shapes at batch 1: feature maps (1, C, H, W), regions (R, C, s, s), boxes (R, 4).
MACs are multiply-adds of convolutions and linear layers; everything else counts zero.
"""

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any, ClassVar

from fastnas.errors import InputError

if TYPE_CHECKING:
    from fastnas.blueprint.operators import Operators

Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class Spec:
    """Base of all specs. `op` names the kind in tables and in JSON."""

    op: ClassVar[str]
    per_use: ClassVar[bool] = False  # some weights belong to one use each: builders get the index of the use

    def params(self) -> int:
        return 0

    def macs(self, inputs: Shapes) -> int:
        return 0

    def outputs(self, inputs: Shapes) -> Shapes:
        raise TypeError(f"{type(self).__name__} does not say its output shapes")

    def operators(self, inputs: Shapes) -> "Operators":
        """The fused layers that it runs as, see `fastnas.blueprint.operators`. Raises InputError where it does not say them."""
        raise InputError(f"blocks of the kind {self.op!r} do not say which operators they run as: they can only be measured whole")

    def to_dict(self) -> dict:
        """Canonical description, the same for equal specs in every process; without `added` fields at their default."""
        values: dict = {"op": self.op}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not ("added" in field.metadata and value == field.default):
                values[field.name] = value
        return values

    def key(self, inputs: Shapes) -> str:
        """Identifies this block at these input shapes in a latency table (canonical JSON)."""
        return _CANONICAL({**self.to_dict(), "inputs": inputs})


def added(default: Any) -> Any:
    """A field that a spec got after such blocks had been measured: at this default the block is the one that it was, same key."""
    return dataclasses.field(default=default, metadata={"added": True})


def half(side: int) -> int:
    """Output side of every stride-2 layer: symmetric padding and TensorFlow's SAME both round up."""
    return (side + 1) // 2


def conv_params(cin: int, cout: int, kernel: int, groups: int = 1, bias: bool = False) -> int:
    """Parameters of a square convolution; without bias, also its multiply-adds at one output pixel."""
    return cin // groups * cout * kernel * kernel + cout * bias


def norm_groups(norm: str, channels: int, most: int = 32) -> int:
    """Groups of a GroupNorm over `channels`.

    gn: 16 channels each (Wu & He 2018, Table 3) where 16 divides, else the largest power of two that does. gnws: as many groups as
    divide both `most` and the channels, but none of one channel (SM-NAS: half of the backbone's base, a quarter where the stem
    has half as many channels).
    """
    if norm == "gn":
        return channels // math.gcd(channels, 16)
    groups = math.gcd(most, channels)
    return max(1, groups // 2) if groups == channels else groups
