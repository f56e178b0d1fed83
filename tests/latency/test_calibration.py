"""The line through networks measured whole and its interval, on numbers whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.latency.calibration import FEWEST, calibrate, spread_out


def made(seed: int, count: int, noise: float, slope: float = 1.08, intercept: float = 0.4):
    rng = np.random.default_rng(seed)
    sums = np.exp(rng.uniform(np.log(3), np.log(30), count))
    return sums, (slope * sums + intercept) * np.exp(noise * rng.standard_normal(count))


def test_recovers_a_line():
    sums, measured = made(0, 20, noise=0.0)
    line = calibrate(sums, measured)
    for total in (3.0, 10.0, 30.0):
        assert line.predict(total) == pytest.approx(1.08 * total + 0.4, rel=0.01)
    assert line.networks == 20 and line.error < 0.005 and line.margin < 0.02


def test_few_or_identical_networks_stay_near_the_identity():
    assert calibrate([5.0] * (FEWEST - 1), [5.5] * (FEWEST - 1)) is None
    sums = np.array([4.0, 5.0, 6.0, 7.0, 8.0])
    line = calibrate(sums, sums)
    assert line.predict(5.0) == pytest.approx(5.0, rel=1e-3)
    same = calibrate([5.0] * 6, [5.5] * 6)  # no slope can be told from one size: it must not fly off
    assert same.predict(5.0) == pytest.approx(5.5, rel=0.01) and same.predict(50.0) == pytest.approx(52.0, rel=0.1)


def test_beats_the_plain_sum_on_unseen_networks():
    errors = []
    for seed in range(20):
        sums, measured = made(seed, 60, noise=0.02)
        line = calibrate(sums[:12], measured[:12])
        predicted = np.array([line.predict(total) for total in sums[12:]])
        errors.append((np.mean(abs(predicted / measured[12:] - 1)), np.mean(abs(sums[12:] / measured[12:] - 1))))
    ours, plain = np.mean(errors, axis=0)
    assert ours < 0.025 < 0.08 < plain


@pytest.mark.parametrize("count", [9, 12, 20])
def test_interval_covers_what_it_promises(count):
    # 90 % of networks never seen, over many calibrations; the finite-sample guarantee is ceil(0.9 (n + 1)) / (n + 1)
    covered = []
    for seed in range(400):
        sums, measured = made(seed, count + 50, noise=0.03)
        line = calibrate(sums[:count], measured[:count])
        covered += [low <= truth <= high for (_, low, high), truth in zip(map(line, sums[count:]), measured[count:], strict=True)]
    assert 0.875 < np.mean(covered) < 0.96


def test_network_far_below_the_fit_costs_something():
    sums, measured = made(1, 20, noise=0.0, slope=1.2, intercept=-2.0)
    assert calibrate(sums, measured).predict(0.1) == pytest.approx(0.05)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=60), st.integers(1, 25))
def test_chosen_networks_span_the_range(sums, count):
    chosen = spread_out(sums, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(sums))
    if 2 <= count:
        assert min(sums) in (picked := [sums[index] for index in chosen]) and max(sums) in picked
