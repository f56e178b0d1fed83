"""The proof of an oracle: its prices beside networks measured whole that neither its table nor its calibration has seen.

Beside them: how well the machine repeats itself (no price can be better), and what cheaper oracles would have said: MACs alone, the
sum of isolated operators (every convolution, linear layer, pool, ... an entry of its own), the sum of blocks without a calibration.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from fastnas.blueprint import Blueprint, expand
from fastnas.blueprint.blocks import Shapes, Spec
from fastnas.blueprint.expand import Network
from fastnas.latency import accuracy
from fastnas.latency.calibration import MOST, Parts, calibrate
from fastnas.latency.oracle import Oracle

TOGETHER = 8  # networks in memory at the same time, timed in interleaved rounds
SPLITS = 200
FIGURES = (  # of `figures`
    "n", "mape", "within_5", "within_10", "kendall_tau", "interval_coverage", "split_coverage", "calibration_networks",
    "repeat_mape", "repeat_median", "repeat_p90", "macs_mape", "macs_kendall_tau",
    "operators_mape", "operators_scaled_mape", "operators_kendall_tau", "sum_mape", "sum_kendall_tau",
)  # fmt: skip

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Whole:
    """Milliseconds of whole networks in two passes, and how many seconds timing took for each network of a pass."""

    first: list[float]
    second: list[float]
    seconds: float

    @property
    def truth(self) -> list[float]:
        return [fmean(pair) for pair in zip(self.first, self.second, strict=True)]


def measure(oracle: Oracle, blueprints: Sequence[Blueprint], progress: Progress, now: Callable[[], float]) -> Whole:
    """Two passes over all networks, in an order of its own each: the repeat error then holds the machine's slow changes."""
    passes, start, random = [], now(), np.random.default_rng(0)
    for done in range(2):
        order, values = random.permutation(len(blueprints)), [0.0] * len(blueprints)
        for at in range(0, len(order), TOGETHER):
            group = order[at : at + TOGETHER]
            progress(done * len(order) + at, 2 * len(order))
            for index, timing in zip(group, oracle.measure_whole_all([blueprints[i] for i in group]), strict=True):
                values[index] = timing.median_ms
        passes.append(values)
    return Whole(*passes, (now() - start) / (2 * len(blueprints)))


def figures(oracle: Oracle, blueprints: Sequence[Blueprint], whole: Whole, operators: Sequence[float] | None = None) -> dict:
    """How good the prices of these networks are, in percent; None: not known (of one network, or without operators).

    operators: their sums of isolated operators in milliseconds.
    """
    truth, prices = whole.truth, [oracle(blueprint) for blueprint in blueprints]
    predicted, macs = [price.predicted for price in prices], [expand(b).macs for b in blueprints]
    sums = [sum(block.ms for block in oracle.blocks(b)) for b in blueprints]
    repeats = [abs(error) for error in accuracy.errors(whole.first, whole.second)]
    calibration = oracle.calibration
    return {
        "n": len(truth),
        "mape": accuracy.mape(predicted, truth),
        "within_5": accuracy.within(5, predicted, truth),
        "within_10": accuracy.within(10, predicted, truth),
        "kendall_tau": accuracy.kendall_tau(predicted, truth),
        "interval_coverage": accuracy.coverage([p.low for p in prices], [p.high for p in prices], truth),
        "split_coverage": split_coverage([oracle.parts(b) for b in blueprints], truth),
        "calibration_networks": calibration.networks if calibration else 0,
        "repeat_mape": fmean(repeats),
        "repeat_median": median(repeats),
        "repeat_p90": float(np.quantile(repeats, 0.9)),
        "macs_mape": accuracy.proportional_mape(macs, truth),
        "macs_kendall_tau": accuracy.kendall_tau(macs, truth),
        "operators_mape": accuracy.mape(operators, truth) if operators else None,
        "operators_scaled_mape": accuracy.proportional_mape(operators, truth) if operators else None,
        "operators_kendall_tau": accuracy.kendall_tau(operators, truth) if operators else None,
        "sum_mape": accuracy.mape(sums, truth),
        "sum_kendall_tau": accuracy.kendall_tau(sums, truth),
    }


def split_coverage(networks: Sequence[Parts], truth: Sequence[float], most: int = MOST, splits: int = SPLITS) -> float | None:
    """Share in percent of networks inside their interval when `most` others, drawn at random, are the calibration: the mean of many
    draws. None: there are too few networks to leave any out."""
    if len(truth) < 2 * most:
        return None
    random, shares = np.random.default_rng(0), []
    for _ in range(splits):
        drawn, rest = np.split(random.permutation(len(truth)), [most])
        found = calibrate([networks[i] for i in drawn], [truth[i] for i in drawn])
        intervals = [found(networks[i]) for i in rest]
        lows, highs = [low for _, low, _ in intervals], [high for _, _, high in intervals]
        shares.append(accuracy.coverage(lows, highs, [truth[i] for i in rest]))
    return fmean(shares)


def operator_pairs(networks: Sequence[Network]) -> list[tuple[Spec, Shapes]]:
    """All distinct layers of the blocks of these networks, in the order they come up."""
    blocks = dict.fromkeys(pair for network in networks for pair in network.prices())
    return list(dict.fromkeys(layer for spec, shapes in blocks for layer in spec.operators(shapes)))


def operator_sums(oracle: Oracle, blueprints: Sequence[Blueprint], progress: Progress) -> list[float]:
    """Milliseconds of each network as the sum of its layers measured alone; those that the table lacks are measured and stored."""
    networks = [expand(blueprint) for blueprint in blueprints]
    pairs = operator_pairs(networks)
    for done, pair in enumerate(pairs):
        progress(done, len(pairs))
        oracle.timing(pair)
    return [
        sum(
            uses * oracle.timing(layer).median_ms
            for (spec, shapes), uses in network.prices().items()
            for layer in spec.operators(shapes)
        )
        for network in networks
    ]
