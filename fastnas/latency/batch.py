"""Prices by the thousand: milliseconds, parameters and MACs of encoded blueprints, summed by native code (`fastnas._core`).

    pricer = BatchPricer(oracle, space)
    genes = np.stack([space.encode(blueprint) for blueprint in many])
    milliseconds = pricer(genes)                             # the numbers that the oracle gives, NaN where a block is unknown
    allowed = pricer.within(genes, latency_ms=10, params=5e6)

The weights of the automaton (`fastnas.spaces.genes`) are the calibrated milliseconds of the blocks that a transition adds, less
those that it takes away, so the order of additions differs from the oracle's own and results agree to about 1e-12. Whatever is
measured or corrected later is not in a pricer that is already there: make a new one.
"""

import math
from collections import Counter

import numpy as np

from fastnas import _core
from fastnas.blueprint import Blueprint, expand
from fastnas.blueprint.expand import Network
from fastnas.latency.calibration import NO_CALIBRATION, Parts
from fastnas.latency.oracle import Oracle
from fastnas.spaces.genes import END, Encoded


class BatchPricer:
    """The prices of one space, from the blocks that the oracle's table holds or tells by others; nothing is measured.

    unknown: how many blocks of the space it does not. Blueprints with one of them have no price.
    """

    def __init__(self, oracle: Oracle, space: Encoded):
        transitions = list(space.transitions())
        states = 1 + max(max(t.start, t.end) for t in transitions)
        following = np.full((states, space.symbols), -1, np.int32)
        cost = np.zeros((states, space.symbols, 3))
        marks = np.zeros((states, space.symbols), np.uint64)
        weights = _Weights(oracle)
        for t in transitions:
            following[t.start, t.symbol] = t.end
            if t.after is not None:
                cost[t.start, t.symbol], marks[t.start, t.symbol] = weights.of(t.before, t.after)
        self.unknown = len(weights.marks)
        accepts = np.array([space.accepting(state) for state in range(states)])
        self._automaton = _core.Automaton(following, cost, marks, accepts, END)
        self._calibration = weights.calibration

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        """Predicted milliseconds: uint8 [n, width] -> float64 [n]. NaN: a block is unknown, or the row is no blueprint."""
        return self._predicted(self._automaton.walk(genes)[:, 0])

    def one(self, genes: np.ndarray) -> float:
        """Predicted milliseconds of one row, uint8 [width]."""
        return self._calibration.whole(self._automaton.first(genes))

    def counts(self, genes: np.ndarray) -> np.ndarray:
        """Parameters and MACs: uint8 [n, width] -> float64 [n, 2], exact below 2^53; NaN as in a call."""
        return self._automaton.walk(genes)[:, 1:]

    def within(
        self, genes: np.ndarray, latency_ms: float = math.inf, params: float = math.inf, macs: float = math.inf
    ) -> np.ndarray:
        """Which rows keep all limits: bool [n]. A row whose price is unknown keeps none."""
        values = self._automaton.walk(genes)
        values[:, 0] = self._predicted(values[:, 0])
        return _core.within(values, np.array([latency_ms, params, macs], np.float64))

    def _predicted(self, totals: np.ndarray) -> np.ndarray:
        return np.maximum(totals + self._calibration.intercept, 0.5 * totals)


class _Weights:
    """What transitions cost. Unknown blocks get a random mark each, see csrc/core/pricing.cpp."""

    def __init__(self, oracle: Oracle):
        self._oracle = oracle
        self.calibration = oracle.usable_calibration or NO_CALIBRATION
        self._networks: dict[Blueprint, Network] = {}
        self._random = np.random.default_rng(0)
        self.marks: dict[tuple, int] = {}

    def of(self, before: Blueprint | None, after: Blueprint) -> tuple[tuple[float, float, float], int]:
        """(milliseconds, parameters, MACs) that `after` has more than `before`, and the sum of their marks modulo 2^64."""
        new, old = self._network(after), self._network(before) if before else None
        uses = Counter(new.prices())
        uses.subtract(old.prices() if old else {})
        milliseconds, mark = 0.0, 0
        for pair, count in uses.items():
            if count and (timing := self._oracle.find(pair)):
                milliseconds += count * self.calibration.blocks(Parts({pair[0].op: timing.median_ms}, 1))
            elif count:
                mark += count * self.marks.setdefault(pair, int(self._random.integers(1, 2**63)))
        params, macs = new.params - (old.params if old else 0), new.macs - (old.macs if old else 0)
        return (milliseconds, float(params), float(macs)), mark % 2**64

    def _network(self, blueprint: Blueprint) -> Network:
        if blueprint not in self._networks:
            self._networks[blueprint] = expand(blueprint)
        return self._networks[blueprint]
