"""A block that a table lacks and that may not be measured: interpolated from measured blocks of the same kind.

Of the same kind are blocks that differ in nothing but sizes (channels, regions, maps), and whose channels are all multiples of
ALIGNED if its own are: kernels step there. The NEAREST of them, by the distance of the logarithms of all sizes, say each what the
block would take if it were as fast for its work (operations and traffic of its operators); their answers are averaged, the nearer
the heavier. The error is that of the same done to every measured block of the kind with itself left out.

Refused where fewer than FEWEST of the kind are there, or where a size lies more than REACH times beyond all of theirs.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fastnas.blueprint import blocks
from fastnas.blueprint.blocks import Shapes, Spec
from fastnas.errors import InputError
from fastnas.latency.estimate import Estimate, interpolated
from fastnas.latency.table import Environment, LatencyTable

FEWEST, NEAREST, REACH, ALIGNED = 8, 4, 1.5, 8
LEVEL = 0.90
_JUDGED = 300  # blocks of a kind that are left out in turn, at most
SIZES = {"channels", "in_channels", "out_channels", "planes", "hidden", "logits", "input", "topk", "proposals", "detections"}
KINDS = {spec.op: spec for spec in vars(blocks).values() if isinstance(spec, type) and issubclass(spec, Spec) and spec is not Spec}

Point = tuple[float, ...]


@dataclass(frozen=True)
class _Kind:
    """The measured blocks of one kind, one row each: logarithms of sizes, of milliseconds and of work."""

    sizes: np.ndarray
    ms: np.ndarray
    work: np.ndarray

    def predict(self, sizes: np.ndarray, work: float, without: int | None = None) -> float:
        """Logarithm of milliseconds."""
        distance = np.abs(self.sizes - sizes).sum(1)
        if without is not None:
            distance[without] = np.inf
        nearest = np.argsort(distance, kind="stable")[:NEAREST]
        weights = 1 / (distance[nearest] + 0.05) ** 2
        return float(np.average(self.ms[nearest] + work - self.work[nearest], weights=weights))

    def error(self) -> float:
        """LEVEL quantile of the relative errors with each block left out, corrected for few of them."""
        judged = np.linspace(0, len(self.ms) - 1, min(len(self.ms), _JUDGED)).astype(int)
        off = [abs(np.exp(self.predict(self.sizes[i], self.work[i], i) - self.ms[i]) - 1) for i in judged]
        return float(np.quantile(off, min(1.0, LEVEL * (1 + 1 / len(off)))))


class Neighbours:
    """Estimates blocks from one environment's entries, which are read when first asked for."""

    def __init__(self, table: LatencyTable, row: Environment):
        self._table, self._row = table, row
        self._kinds: dict[tuple, tuple[_Kind, float] | None] = {}

    def block(self, spec: Spec, inputs: Shapes) -> Estimate:
        """Raises InputError where too few blocks of the kind were measured, or none of about this size."""
        family = _family(spec, inputs)
        if family not in self._kinds:
            self._kinds[family] = self._read(spec.op, family)
        found = self._kinds[family]
        if found is None:
            raise InputError(f"fewer than {FEWEST} measured blocks of its kind to interpolate between")
        (kind, error), sizes = found, np.array(_sizes(spec, inputs))
        if (sizes > kind.sizes.max(0) + np.log(REACH)).any() or (sizes < kind.sizes.min(0) - np.log(REACH)).any():
            raise InputError("no measured block of its kind is about as large")
        return interpolated(float(np.exp(kind.predict(sizes, _work(spec, inputs)))), error)

    def _read(self, op: str, family: tuple) -> tuple[_Kind, float] | None:
        rows = []
        for key, ms in self._table.matching(self._row, f'*"op":"{op}"*').items():
            found = read_key(key)
            if found and _related(_family(*found), family):
                rows.append((_sizes(*found), np.log(ms), _work(*found)))
        if len(rows) < FEWEST:
            return None
        kind = _Kind(*(np.array(column) for column in zip(*rows, strict=True)))
        return kind, kind.error()


def read_key(key: str) -> tuple[Spec, Shapes] | None:
    """The block whose `Spec.key` this is; None for a kind or a field that this fastnas does not know."""
    fields = json.loads(key)
    kind, inputs = KINDS.get(fields.pop("op")), _tuples(fields.pop("inputs"))
    try:
        return kind and (kind(**{name: _tuples(value) for name, value in fields.items()}), inputs)
    except TypeError:  # a field that is not known, or one is missing
        return None


def _family(spec: Spec, inputs: Shapes) -> tuple:
    """What blocks of one kind share, and last whether all channels are aligned."""
    fields = tuple((field.name, getattr(spec, field.name)) for field in dataclasses.fields(spec))
    channels = [size for name, value in fields if "channels" in name or name == "planes" for size in _flat(value)]
    same = tuple((name, value) for name, value in fields if name not in SIZES)
    lengths = tuple((name, len(_flat(value))) for name, value in fields if name in SIZES)
    return spec.op, same, lengths, tuple(map(len, inputs)), all(size % ALIGNED == 0 for size in channels)


def _related(other: tuple, family: tuple) -> bool:
    """Whether a block of the family `other` says something about one of `family`."""
    return other[:-1] == family[:-1] and (other[-1] or not family[-1])


def _sizes(spec: Spec, inputs: Shapes) -> Point:
    """Logarithms of everything that may differ."""
    own = [size for field in dataclasses.fields(spec) if field.name in SIZES for size in _flat(getattr(spec, field.name))]
    return tuple(float(np.log(max(1, size))) for size in (*own, *(size for shape in inputs for size in shape)))


@lru_cache(maxsize=100_000)
def _work(spec: Spec, inputs: Shapes) -> float:
    """Logarithm of the operations and the traffic of all operators."""
    return float(np.log(sum(op.operations(shapes) + op.traffic(shapes) for op, shapes in spec.operators(inputs))))


def _flat(value) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, Iterable) and not isinstance(value, str) else value
