"""Calibration: what the plain sum of blocks is off by, learnt from a few networks measured whole.

    milliseconds = sum over kinds of block of factor * milliseconds of that kind + per_use * uses of blocks + intercept

In a network a block finds other caches, other layouts and other neighbours than alone, and how much that matters depends on its
kind. Fitted to relative errors (weights 1/y^2) by least squares with priors (ridge): a slope that all kinds share is expected at 1,
each kind's own deviation from it, the time per use and the intercept at 0, so that few networks change little. How far kinds may
deviate is one of STRENGTHS, whichever predicts networks best that were left out of the fit; at 0 it is a plain line.

The interval is a conformal one (Barber et al., "Predictive inference with the jackknife+", 2021, the leave-one-out residuals of its
section 1): half as wide as the LEVEL quantile, corrected for few networks, of the relative residuals that each network has when
the others are fitted without it.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from fastnas.blueprint import expand, parse
from fastnas.blueprint.blocks import Shapes, Spec
from fastnas.blueprint.expand import Network
from fastnas.errors import InputError
from fastnas.latency.timing import Timing

MOST = 20  # networks a calibration is made of
FEWEST = 5
LEVEL = 0.90  # share of networks inside the interval
TOO_FAR = 0.15  # mean leave-one-out error above which no such sum describes this device
NOISE = 0.03  # relative error expected of one network
SLOPE_PRIOR, INTERCEPT_PRIOR = 0.15, 0.10  # how far from 1, and from 0 in shares of the middle network, is not surprising
STRENGTHS = (0.0, 0.05, 0.1, 0.2)  # the same of a kind's own deviation; half of it of what the uses of the middle network take
_FIXED = 1e-6  # a prior this narrow keeps a coefficient where it is


@dataclass(frozen=True)
class Parts:
    """What a network is made of: milliseconds of its blocks by kind (`Spec.op`), all uses counted, and how many uses there are."""

    kinds: Mapping[str, float]
    uses: int

    @property
    def total(self) -> float:
        return sum(self.kinds.values())


@dataclass(frozen=True)
class Calibration:
    """The fit and its interval. `error`: mean relative leave-one-out error; `margin`: half width, relative."""

    slope: float  # of kinds that the fit has not seen
    intercept: float  # milliseconds
    networks: int
    error: float
    margin: float
    factors: Mapping[str, float] = field(default_factory=dict)  # by kind
    per_use: float = 0.0  # milliseconds

    def __call__(self, parts: Parts) -> tuple[float, float, float]:
        """(predicted, low, high) milliseconds of a network."""
        predicted = self.predict(parts)
        return predicted, predicted * (1 - self.margin), predicted * (1 + self.margin)

    def predict(self, parts: Parts) -> float:
        return self.whole(self.blocks(parts))

    def blocks(self, parts: Parts) -> float:
        """What blocks add to a network that has others too."""
        return sum(self.factors.get(kind, self.slope) * ms for kind, ms in parts.kinds.items()) + self.per_use * parts.uses

    def whole(self, blocks: float) -> float:
        """Milliseconds of a network whose blocks add up to this. One far smaller than those of the fit could come out at nothing:
        it never costs less than half its blocks."""
        return max(blocks + self.intercept, 0.5 * blocks)

    def to_dict(self) -> dict:
        return {**asdict(self), "factors": dict(self.factors)}


NO_CALIBRATION = Calibration(slope=1.0, intercept=0.0, networks=0, error=0.0, margin=0.0)  # sums of blocks as they are


def parts_of(network: Network, find: Callable[[tuple[Spec, Shapes]], Timing | None]) -> Parts | None:
    """The parts of a network; None where `find` does not know one of its blocks."""
    kinds: Counter[str] = Counter()
    prices = network.prices()
    for pair, uses in prices.items():
        if (timing := find(pair)) is None:
            return None
        kinds[pair[0].op] += uses * timing.median_ms
    return Parts(dict(kinds), prices.total())


def calibrate(networks: Sequence[Parts], measured: Sequence[float]) -> Calibration | None:
    """Fits milliseconds `measured` whole to the parts of the same networks. None: too few to say anything."""
    if len(networks) < FEWEST:
        return None
    design, y = _Design(networks), np.asarray(measured, float)
    coefficients, residuals = min((design.fit(y, strength) for strength in STRENGTHS), key=lambda fit: np.mean(abs(fit[1])))
    slope, *own, per_use, intercept = coefficients.tolist()
    factors = {kind: slope + deviation for kind, deviation in zip(design.kinds, own, strict=True)}
    error, margin = float(np.mean(abs(residuals))), _quantile(abs(residuals))
    return Calibration(slope, intercept, len(y), error, margin, factors, per_use)


def calibration_of(
    networks: Mapping[str, tuple[Timing, object]], find: Callable[[tuple[Spec, Shapes]], Timing | None]
) -> Calibration | None:
    """The calibration by networks measured whole (by text), where `find` gives the timing of a block, None for an unknown one.

    Networks with an unknown block are left out, and so are texts that this fastnas does not understand.
    """
    known, measured = [], []
    for text, (timing, _) in networks.items():
        try:
            parts = parts_of(expand(parse(text)), find)
        except InputError:
            continue  # written by a fastnas with other parts
        if parts is not None:
            known.append(parts)
            measured.append(timing.median_ms)
    return calibrate(known, measured)


def informative(networks: Sequence[Parts], count: int = MOST) -> list[int]:
    """Indices of at most `count` networks that tell most about the fit, before any of them is measured.

    Each is the one that the fit to those before it is least sure of (greedy D-optimal design: Fedorov, "Theory of Optimal
    Experiments", 1972): they differ in what they are made of and span the range of sizes.
    """
    if len(networks) <= count:
        return list(range(len(networks)))
    design = _Design(networks)
    rows, information = design.relative(design.totals), design.prior(STRENGTHS[-1])
    chosen: list[int] = []
    while len(chosen) < count:
        doubt = np.einsum("ij,ij->i", rows, np.linalg.solve(information, rows.T).T)
        doubt[chosen] = -1
        chosen.append(int(doubt.argmax()))
        information = information + np.outer(rows[chosen[-1]], rows[chosen[-1]])
    return sorted(chosen)


class _Design:
    """The least-squares problem of some networks: one row a network, columns: all blocks, each kind, uses, one."""

    def __init__(self, networks: Sequence[Parts]):
        self.kinds = sorted({kind for parts in networks for kind in parts.kinds})
        self.totals = np.array([parts.total for parts in networks])
        own = [[parts.kinds.get(kind, 0.0) for kind in self.kinds] for parts in networks]
        self.uses = np.array([float(parts.uses) for parts in networks])
        self._columns = np.column_stack([self.totals, np.array(own), self.uses, np.ones(len(networks))])

    def relative(self, y: np.ndarray) -> np.ndarray:
        """The rows over y, in which uses and intercept are in units of the middle network."""
        return self._columns * self._units(y) / y[:, None]

    def prior(self, strength: float) -> np.ndarray:
        own = [max(_FIXED, strength)] * len(self.kinds)
        return np.diag((NOISE / np.array([SLOPE_PRIOR, *own, max(_FIXED, strength / 2), INTERCEPT_PRIOR])) ** 2)

    def fit(self, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients of the columns, and relative leave-one-out residuals: measured over predicted, less 1."""
        rows, prior = self.relative(y), self.prior(strength)
        expected = np.zeros(rows.shape[1])
        expected[0] = 1.0
        missing = 1 - rows @ expected
        solved = np.linalg.solve(rows.T @ rows + prior, rows.T)  # [columns, networks]
        hat = rows @ solved
        left_out = (missing - hat @ missing) / (1 - np.diag(hat))  # 1 - predicted / measured, where the network was not in the fit
        return (expected + solved @ missing) * self._units(y), left_out / np.maximum(1 - left_out, 0.1)

    def _units(self, y: np.ndarray) -> np.ndarray:
        middle = float(np.median(y))
        return np.array([1.0, *[1.0] * len(self.kinds), middle / float(np.median(self.uses)), middle])


def _quantile(residuals: np.ndarray) -> float:
    """The conformal quantile: with few networks the largest residual, widened by what LEVEL asks beyond it."""
    ordered, count = np.sort(residuals), len(residuals)
    rank = math.ceil((count + 1) * LEVEL)
    return float(ordered[rank - 1] if rank <= count else ordered[-1] * rank / count)
