"""Calibration: what the plain sum of blocks is off by, learnt from a few networks measured whole.

    milliseconds = slope * sum + intercept

fitted to relative errors (weights 1/y^2) and shrunk to the identity (slope 1, intercept 0) by a ridge prior, so that few networks
change little. The interval is a conformal one (Barber et al., "Predictive inference with the jackknife+", 2021, the leave-one-out
residuals of its section 1): half as wide as the LEVEL quantile, corrected for few networks, of the relative residuals that each
network has when the others are fitted without it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fastnas.blueprint import expand, parse
from fastnas.blueprint.blocks import Shapes, Spec
from fastnas.blueprint.expand import Network
from fastnas.errors import InputError
from fastnas.latency.timing import Timing

MOST = 20  # networks a calibration is made of
FEWEST = 5
LEVEL = 0.90  # share of networks inside the interval
TOO_FAR = 0.15  # mean leave-one-out error above which a line does not describe this device
NOISE = 0.03  # relative error expected of one network
SLOPE_PRIOR, INTERCEPT_PRIOR = 0.15, 0.10  # how far from 1, and from 0 in shares of the middle network, is not surprising


@dataclass(frozen=True)
class Calibration:
    """The fitted line and its interval. `error`: mean relative leave-one-out error; `margin`: half width, relative."""

    slope: float
    intercept: float  # milliseconds
    networks: int
    error: float
    margin: float

    def __call__(self, total: float) -> tuple[float, float, float]:
        """(predicted, low, high) milliseconds for a sum of blocks."""
        predicted = self.predict(total)
        return predicted, predicted * (1 - self.margin), predicted * (1 + self.margin)

    def predict(self, total: float) -> float:
        # A network far smaller than those of the fit could come out at nothing: it never costs less than half its blocks.
        return max(self.slope * total + self.intercept, 0.5 * total)

    def to_dict(self) -> dict:
        return asdict(self)


def calibrate(sums: Sequence[float], measured: Sequence[float]) -> Calibration | None:
    """Fits milliseconds `measured` whole to the `sums` of blocks of the same networks. None: too few to say anything."""
    x, y = np.asarray(sums, float), np.asarray(measured, float)
    if len(x) < FEWEST:
        return None
    slope, intercept = _line(x, y)
    residuals = []
    for index in range(len(x)):
        others = np.arange(len(x)) != index
        a, b = _line(x[others], y[others])
        residuals.append(abs(y[index] / max(a * x[index] + b, 0.5 * x[index]) - 1))
    return Calibration(slope, intercept, len(x), float(np.mean(residuals)), _quantile(residuals))


def calibration_of(
    networks: Mapping[str, tuple[Timing, object]], find: Callable[[tuple[Spec, Shapes]], Timing | None]
) -> Calibration | None:
    """The calibration by networks measured whole (by text), where `find` gives the timing of a block, None for an unknown one.

    Networks with an unknown block are left out, and so are texts that this fastnas does not understand.
    """
    sums, measured = [], []
    for text, (timing, _) in networks.items():
        try:
            total = known_sum(expand(parse(text)), find)
        except InputError:
            continue  # written by a fastnas with other parts
        if total is not None:
            sums.append(total)
            measured.append(timing.median_ms)
    return calibrate(sums, measured)


def known_sum(network: Network, find: Callable[[tuple[Spec, Shapes]], Timing | None]) -> float | None:
    """The sum of the blocks of a network in milliseconds; None where `find` does not know one of them."""
    blocks = [(find(pair), uses) for pair, uses in network.prices().items()]
    if any(block is None for block, _ in blocks):
        return None
    return sum(uses * block.median_ms for block, uses in blocks)


def spread_out(sums: Sequence[float], count: int = MOST) -> list[int]:
    """Indices of at most `count` networks that span the range of the sums evenly (on a logarithmic scale), ends included."""
    order = sorted(range(len(sums)), key=lambda index: sums[index])
    if len(order) <= count:
        return order
    logs = [math.log(sums[index]) for index in order]
    chosen: dict[int, None] = {}
    for step in range(count):
        wanted = logs[0] + (logs[-1] - logs[0]) * step / max(1, count - 1)
        free = (at for at in range(len(order)) if at not in chosen)
        chosen[min(free, key=lambda at: abs(logs[at] - wanted))] = None
    return [order[at] for at in sorted(chosen)]


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Least squares of (slope * x + intercept - y) / y with a ridge around (1, 0), in closed form."""
    middle = float(np.median(y))
    design = np.stack([x / y, middle / y], axis=1)  # the intercept in units of the middle network
    weights = np.array([(NOISE / SLOPE_PRIOR) ** 2, (NOISE / INTERCEPT_PRIOR) ** 2])
    left = design.T @ design + np.diag(weights)
    right = design.T @ np.ones(len(y)) + weights * np.array([1.0, 0.0])
    slope, intercept = np.linalg.solve(left, right)
    return float(slope), float(intercept * middle)


def _quantile(residuals: Sequence[float]) -> float:
    """The conformal quantile: with few networks the largest residual, widened by what LEVEL asks beyond it."""
    ordered, count = sorted(residuals), len(residuals)
    rank = math.ceil((count + 1) * LEVEL)
    return float(ordered[rank - 1] if rank <= count else ordered[-1] * rank / count)
