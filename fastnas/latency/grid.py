"""Interpolation between the measured convolutions of one family: same kernel, stride, fused sum, dense or depthwise.

Axes: input over output channels (of images: input channels), output channels, and the side of the square map with the same area (a
map that is not square, and a batch of maps, count by their area). Between the lines of the grid, the logarithm of measured over
modelled (`Roofline`) milliseconds is linear in the logarithms of the three; `bench/bench_tinynas.py` compares that with plainer
ways. Where the grid has a hole or ends, the nearest measured ratio goes on, times the model: such prices count as modelled.

`error(axes)`: each line in turn is predicted from its two neighbours, in all of `axes` at once; the LEVEL quantile of the relative
errors. A line that is left out makes the gap twice as wide, so real errors are smaller.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastnas.latency.roofline import LEVEL

AXES = ("ratio", "channels", "side")
FEWEST = 8  # left-out points that an error is taken from


@dataclass(frozen=True)
class Between:
    """Measured over modelled milliseconds at a point. axes: where it lies between lines; inside: nothing was continued."""

    ratio: float
    axes: tuple[str, ...]
    inside: bool


class Grid:
    """Made of points (ratio, channels, side), their milliseconds, and what the model says of them."""

    def __init__(self, points: np.ndarray, ms: np.ndarray, modelled: np.ndarray):
        logs = np.log(np.asarray(points, float)).round(9)
        self.lines, indices = zip(*(np.unique(values, return_inverse=True) for values in logs.T), strict=True)
        self.logs = np.full([len(line) for line in self.lines], np.nan)  # of measured over modelled
        self.logs[indices] = np.log(np.asarray(ms) / modelled)

    def __call__(self, ratio: float, channels: int, side: float) -> Between:
        places = [_place(line, x) for line, x in zip(self.lines, np.log([ratio, channels, side]), strict=True)]
        value, inside = 0.0, all(within for _, _, within in places)
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod([share if high else 1 - share for (_, share, _), high in zip(places, corner, strict=True)])
            if weight > 0:
                at = tuple(index + high for (index, _, _), high in zip(places, corner, strict=True))
                value += weight * self._filled[at]
                inside = inside and np.isfinite(self.logs[at])
        axes = tuple(axis for axis, (_, share, _) in zip(AXES, places, strict=True) if 0 < share < 1)
        return Between(float(np.exp(value)), axes, bool(inside))

    def error(self, axes: Sequence[str]) -> float | None:
        """See above; None: too few points lie between others. Without axes 0: the point itself was measured."""
        if not axes:
            return 0.0
        found = self.left_out(axes)
        return float(np.quantile(found, LEVEL)) if len(found) >= FEWEST else None

    def left_out(self, axes: Sequence[str]) -> np.ndarray:
        """Relative errors of all points that can be predicted from the lines beside theirs in all of `axes`."""
        predicted = self.logs
        for axis in axes:
            predicted = from_neighbours(predicted, self.lines[AXES.index(axis)], AXES.index(axis))
        errors = np.abs(np.exp(predicted - self.logs) - 1)
        return errors[np.isfinite(errors)]

    @cached_property
    def _filled(self) -> np.ndarray:
        """The logs with holes filled from the nearest line that has a value: along the side, then channels, then the ratio."""
        filled = self.logs.copy()
        for axis in (2, 1, 0):
            lines = np.moveaxis(filled, axis, -1).reshape(-1, filled.shape[axis])
            for line in lines:
                known = np.flatnonzero(np.isfinite(line))
                if 0 < len(known) < len(line):
                    line[:] = line[known[np.abs(np.arange(len(line))[:, None] - known).argmin(1)]]
            shape = [size for index, size in enumerate(filled.shape) if index != axis] + [filled.shape[axis]]
            filled = np.moveaxis(lines.reshape(shape), -1, axis)
        return filled


def _place(line: np.ndarray, x: float) -> tuple[int, float, bool]:
    """(index, share, within): x lies `share` of the way from line[index] to the next; beyond the ends it is moved to them."""
    within = line[0] - 1e-6 <= x <= line[-1] + 1e-6
    x = min(max(x, line[0]), line[-1])
    index = max(0, min(int(np.searchsorted(line, x, side="right")) - 1, len(line) - 2))
    if len(line) == 1:
        return 0, 0.0, within
    share = (x - line[index]) / (line[index + 1] - line[index])
    return index, 0.0 if share < 1e-6 else 1.0 if share > 1 - 1e-6 else float(share), within


def from_neighbours(logs: np.ndarray, line: np.ndarray, axis: int) -> np.ndarray:
    """Every value predicted from the lines on both sides of its own; NaN on the outer ones."""
    logs, predicted = np.moveaxis(logs, axis, 0), np.full_like(np.moveaxis(logs, axis, 0), np.nan)
    if len(line) > 2:
        share = ((line[1:-1] - line[:-2]) / (line[2:] - line[:-2])).reshape(-1, *[1] * (logs.ndim - 1))
        predicted[1:-1] = (1 - share) * logs[:-2] + share * logs[2:]
    return np.moveaxis(predicted, 0, axis)
