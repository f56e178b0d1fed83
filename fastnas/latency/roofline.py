"""A bytes-and-operations model of one layer, fitted to the convolutions of a table. For what the table does not hold.

    milliseconds = start + step x chain + mac x operations + byte x bytes

start: what any layer costs; chain: how many multiply-adds one output value waits for in a row (input channels x kernel^2), which
bounds small maps on wide devices; the last two are the roofline of Williams et al. (CACM 2009), added instead of their larger one.
All four are positive and fitted to relative errors. Dense and depthwise convolutions are fitted apart: they reach other shares of a
device's speed. Dense layers with batch 1 on a V100 in half precision come out at 60 of its 62.5 tera multiply-adds a second.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from fastnas.errors import InputError

BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}  # of one value, by precision
FEWEST = 24  # layers that a fit is made of
LEVEL = 0.90  # of the errors that `error` covers
_ROUNDS = 10  # of reweighting


@dataclass(frozen=True)
class Roofline:
    """The fitted model. `error`: LEVEL quantile of the relative errors on the layers that it was fitted to."""

    start: float  # milliseconds
    step: float  # milliseconds a link of the chain
    mac: float  # milliseconds an operation
    byte: float  # milliseconds a byte
    error: float

    def __call__(self, chain, operations, traffic, launches=1):
        """Milliseconds of layers, numbers or arrays. traffic: bytes; launches: kernels that are started."""
        return self.start * launches + self.step * chain + self.mac * operations + self.byte * traffic


def fit(chain: np.ndarray, operations: np.ndarray, traffic: np.ndarray, ms: np.ndarray) -> Roofline | None:
    """The model of layers that took `ms`; None: too few of them. Least squares, reweighted towards absolute logarithmic errors."""
    if len(ms) < FEWEST:
        return None
    features = np.stack([np.ones(len(ms)), chain, operations, traffic], 1).astype(float)
    scale = features.max(0)
    features /= np.where(scale > 0, scale, 1)
    weights, found = 1 / ms, np.zeros(4)
    for _ in range(_ROUNDS):
        found = _positive(features * weights[:, None], ms * weights)
        predicted = np.maximum(features @ found, 1e-12)
        weights = 1 / np.sqrt(np.maximum(np.abs(np.log(predicted / ms)), 0.05) * predicted * ms)
    error = float(np.quantile(np.abs(features @ found / ms - 1), LEVEL))
    return Roofline(*map(float, found / np.where(scale > 0, scale, 1)), error)


def bytes_of(precision: str) -> int:
    """Bytes of one value. Raises InputError."""
    if precision not in BYTES:
        raise InputError(f"unknown precision {precision!r} (known: {', '.join(BYTES)})")
    return BYTES[precision]


def _positive(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Non-negative least squares over few columns: the best of all subsets whose solution is non-negative."""
    gram, right = design.T @ design, design.T @ target
    count, best, least = len(right), np.zeros(len(right)), np.inf
    for size in range(1, count + 1):
        for chosen in map(list, itertools.combinations(range(count), size)):
            part = np.linalg.lstsq(gram[np.ix_(chosen, chosen)], right[chosen], rcond=None)[0]
            loss = part @ gram[np.ix_(chosen, chosen)] @ part - 2 * part @ right[chosen]
            if (part >= 0).all() and loss < least:
                best, least = np.zeros(count), loss
                best[chosen] = part
    return best
