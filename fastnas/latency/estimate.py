"""Estimate: milliseconds that were not measured as a whole, and where they come from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastnas.latency.timing import Timing

QUANTILE = 1.645  # standard deviations in half a 90 % interval
SHARES = ("doubt", "interpolated", "modelled")


@dataclass(frozen=True)
class Estimate(Timing):
    """As a Timing, whose `spread` is independent of that of other blocks; min_ms and count say nothing.

    doubt: half the relative width of the interval that models add, taken to err the same way everywhere.
    interpolated, modelled: shares of the milliseconds; the rest is the sum of measured layers.
    """

    doubt: float = 0.0
    interpolated: float = 0.0
    modelled: float = 0.0


def interpolated(ms: float, error: float) -> Estimate:
    """From entries around it. error: 90 % of such estimates are less far off, relative."""
    return Estimate(ms, ms, error / QUANTILE, 1, interpolated=1.0)


def modelled(ms: float, doubt: float) -> Estimate:
    """By a model. doubt: as `error` above, but all estimates of the model may err together."""
    return Estimate(ms, ms, 0.0, 1, doubt, modelled=1.0)


def summed(parts: Sequence[Timing]) -> Estimate:
    """The sum of measured and estimated parts."""
    total = sum(part.median_ms for part in parts)
    spread = math.hypot(*(part.median_ms * part.spread for part in parts)) / total
    guesses = [part for part in parts if isinstance(part, Estimate)]
    shares = (sum(part.median_ms * getattr(part, what) for part in guesses) / total for what in SHARES)
    return Estimate(total, total, spread, 1, *shares)
