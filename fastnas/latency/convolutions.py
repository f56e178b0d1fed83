"""The convolutions of a table as columns: what grids and models are made of."""

import json
from dataclasses import dataclass

import numpy as np

from fastnas.latency.table import Environment, LatencyTable

IMAGE = 8  # convolutions with fewer input channels are a family of their own: kernels for images differ
_KEYS = '*"inputs":[[][[]1,*"op":"conv",*'  # GLOB pattern of the keys of convolutions of one map


def is_depthwise(groups, cin, cout):
    """Of numbers or arrays."""
    return (groups > 1) & (groups == cin) & (cin == cout)


def _columns(key: dict) -> tuple[int, ...]:
    """All but the milliseconds, from a key."""
    (_, _, h, w), *added = key["inputs"]
    stride = key["stride"]
    conv = key["in_channels"], key["out_channels"], key["kernel"], stride, key["groups"], len(added)
    return *conv, h * w, -(-h // stride) * -(-w // stride)


def grid_ratio(cin, cout):
    """The first axis of a `Grid`, of numbers or arrays."""
    return np.where(np.less(cin, IMAGE), cin, np.divide(cin, cout))


@dataclass(frozen=True)
class Convolutions:
    """Convolutions as columns, one row each; `added`: a sum is fused, `ms`: milliseconds, the rest as in `Conv`."""

    cin: np.ndarray
    cout: np.ndarray
    kernel: np.ndarray
    stride: np.ndarray
    groups: np.ndarray
    added: np.ndarray
    pixels: np.ndarray  # of the input
    out_pixels: np.ndarray
    ms: np.ndarray

    @classmethod
    def read(cls, table: LatencyTable, row: Environment) -> "Convolutions":
        """All convolutions of one map that an environment holds. Raises InputError where an entry is none."""
        entries = table.matching(row, _KEYS)
        try:
            rows = [_columns(found) for found in json.loads(f"[{','.join(entries)}]")]
            columns = np.array(rows, float).reshape(-1, 8).T
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise table.damaged(f"an entry of a convolution is none ({type(error).__name__}: {error})") from None
        return cls(*columns, np.array(list(entries.values())))

    @property
    def depthwise(self) -> np.ndarray:
        return is_depthwise(self.groups, self.cin, self.cout)

    def of_kind(self, depthwise: bool) -> "Convolutions":
        return self._where(self.depthwise if depthwise else self.groups == 1)

    def select(self, family: tuple) -> "Convolutions":
        """Those of (depthwise, kernel, stride, fused sum, image)."""
        depthwise, kernel, stride, added, image = family
        same = (self.kernel == kernel) & (self.stride == stride) & (self.added == added)
        kind = self.depthwise if depthwise else (self.groups == 1) & ((self.cin < IMAGE) == image)
        return self._where(same & kind)

    def points(self) -> np.ndarray:
        """[n, 3]: where they lie on the axes of a `Grid`."""
        return np.stack([grid_ratio(self.cin, self.cout), self.cout, np.sqrt(self.pixels)], 1)

    def features(self, bytes_each: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(chain, operations, bytes) as `Roofline` takes them: what `Conv` counts, by columns."""
        chain = self.cin / self.groups * self.kernel**2
        outputs = self.cout * self.out_pixels
        traffic = self.cin * self.pixels + outputs * (1 + self.added) + self.cout * (chain + 1)
        return chain, outputs * chain, traffic * bytes_each

    def _where(self, chosen: np.ndarray) -> "Convolutions":
        return Convolutions(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))
