"""How good predictions are: the figures that `fastnas bench-latency` and the benches publish."""

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean


def errors(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    """Relative errors in percent, signed."""
    return [100 * (ours / truth - 1) for ours, truth in zip(predicted, measured, strict=True)]


def mape(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Mean absolute error in percent."""
    return fmean(map(abs, errors(predicted, measured)))


def within(percent: float, predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Share in percent of predictions that are off by at most `percent`."""
    return 100 * fmean(abs(error) <= percent for error in errors(predicted, measured))


def coverage(low: Sequence[float], high: Sequence[float], measured: Sequence[float]) -> float:
    """Share in percent of measurements inside their interval."""
    return 100 * fmean(a <= truth <= b for a, b, truth in zip(low, high, measured, strict=True))


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b: 1 when both rank alike, -1 when reversed; None where one of them has no order."""
    agreement, ordered_first, ordered_second = 0, 0, 0
    for (a, b), (c, d) in combinations(zip(first, second, strict=True), 2):
        left, right = (a > c) - (a < c), (b > d) - (b < d)
        agreement += left * right
        ordered_first += left != 0
        ordered_second += right != 0
    if not ordered_first or not ordered_second:
        return None
    return agreement / (ordered_first * ordered_second) ** 0.5


def proportional_mape(feature: Sequence[float], measured: Sequence[float]) -> float | None:
    """MAPE of `a * feature`, the simplest baseline (feature: MACs), each with the `a` of all others. None: there are no others."""
    if len(measured) < 2:
        return None
    ratios = [truth / value for truth, value in zip(measured, feature, strict=True)]
    others = [(sum(ratios) - ratio) / (len(ratios) - 1) for ratio in ratios]
    return mape([a * value for a, value in zip(others, feature, strict=True)], measured)
