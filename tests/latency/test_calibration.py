"""The fit through networks measured whole and its interval, on numbers whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.latency.calibration import FEWEST, Parts, calibrate, informative
from fastnas.latency.proof import split_coverage

KINDS = ("residual", "fpn-level", "roi-pool", "mobile-block")


def one_kind(sums) -> list[Parts]:
    return [Parts({"residual": float(total)}, 20) for total in sums]


def made(seed: int, count: int, noise: float, slope: float = 1.08, intercept: float = 0.4):
    rng = np.random.default_rng(seed)
    sums = np.exp(rng.uniform(np.log(3), np.log(30), count))
    return one_kind(sums), (slope * sums + intercept) * np.exp(noise * rng.standard_normal(count))


def mixed(seed: int, count: int, noise: float, factors=(0.95, 1.15, 1.05, 1.4), per_use=0.02):
    """Networks of two families: the first three kinds, or the last with the second."""
    rng = np.random.default_rng(seed)
    own = rng.uniform(0.5, 5, (count, len(KINDS)))
    second = rng.random(count) < 0.4
    own[second, 0] = own[second, 2] = own[~second, 3] = 0
    uses = rng.integers(10, 60, count)
    kinds = [{kind: float(ms) for kind, ms in zip(KINDS, row, strict=True) if ms} for row in own]
    networks = [Parts(by_kind, int(count)) for by_kind, count in zip(kinds, uses, strict=True)]
    return networks, (own @ np.array(factors) + per_use * uses) * np.exp(noise * rng.standard_normal(count))


def error_of(found, networks, measured) -> float:
    return float(np.mean([abs(found.predict(parts) / truth - 1) for parts, truth in zip(networks, measured, strict=True)]))


def test_recovers_a_line():
    networks, measured = made(0, 20, noise=0.0)
    line = calibrate(networks, measured)
    for total in (3.0, 10.0, 30.0):
        assert line.predict(*one_kind([total])) == pytest.approx(1.08 * total + 0.4, rel=0.01)
    assert line.networks == 20 and line.error < 0.005 and line.margin < 0.02


def test_few_or_identical_networks_stay_near_the_identity():
    assert calibrate(one_kind([5.0] * (FEWEST - 1)), [5.5] * (FEWEST - 1)) is None
    sums = np.array([4.0, 5.0, 6.0, 7.0, 8.0])
    line = calibrate(one_kind(sums), sums)
    assert line.predict(*one_kind([5.0])) == pytest.approx(5.0, rel=1e-3)
    same = calibrate(one_kind([5.0] * 6), [5.5] * 6)  # no slope can be told from one size: it must not fly off
    assert same.predict(*one_kind([5.0])) == pytest.approx(5.5, rel=0.01)
    assert same.predict(*one_kind([50.0])) == pytest.approx(53.0, rel=0.1)
    assert same.predict(Parts({"of another kind": 5.0}, 20)) == pytest.approx(5.3, rel=0.05)


def test_beats_the_plain_sum_on_unseen_networks():
    errors = []
    for seed in range(20):
        networks, measured = made(seed, 60, noise=0.02)
        line = calibrate(networks[:12], measured[:12])
        plain = np.mean(abs(np.array([parts.total for parts in networks[12:]]) / measured[12:] - 1))
        errors.append((error_of(line, networks[12:], measured[12:]), plain))
    ours, plain = np.mean(errors, axis=0)
    assert ours < 0.025 < 0.08 < plain


def test_kinds_that_differ_are_told_apart():
    """What one slope cannot describe; where all kinds agree, nothing is lost by looking."""
    for factors, per_use, most in (((0.95, 1.15, 1.05, 1.4), 0.02, 0.035), ((1.1,) * 4, 0.0, 0.025)):
        errors, line = [], []
        for seed in range(10):
            networks, measured = mixed(seed, 100, noise=0.015, factors=factors, per_use=per_use)
            errors.append(error_of(calibrate(networks[:20], measured[:20]), networks[20:], measured[20:]))
            merged = [Parts({"all": parts.total}, 20) for parts in networks]
            line.append(error_of(calibrate(merged[:20], measured[:20]), merged[20:], measured[20:]))
        assert np.mean(errors) < most and (per_use == 0 or np.mean(errors) < 0.6 * np.mean(line))


@pytest.mark.parametrize("count", [9, 12, 20])
def test_interval_covers_what_it_promises(count):
    # 90 % of networks never seen, over many calibrations; the finite-sample guarantee is ceil(0.9 (n + 1)) / (n + 1)
    for make in (made, mixed):
        covered = []
        for seed in range(100):
            networks, measured = make(seed, count + 50, noise=0.03)
            line = calibrate(networks[:count], measured[:count])
            covered += [low <= y <= high for (_, low, high), y in zip(map(line, networks[count:]), measured[count:], strict=True)]
        assert 0.87 < np.mean(covered) < 0.965, make.__name__


def test_coverage_over_random_calibrations():
    networks, measured = mixed(0, 120, noise=0.02)
    assert 85 < split_coverage(networks, measured, splits=25) < 96
    assert split_coverage(networks[:39], measured[:39]) is None, "nothing would be left out"
    wild = measured * np.where(np.arange(120) % 10 == 0, 3.0, 1.0)  # a tenth is far off whatever the fit
    assert split_coverage(networks, wild, splits=25) < 99


def test_network_far_below_the_fit_costs_something():
    networks, measured = made(1, 20, noise=0.0, slope=1.2, intercept=-2.0)
    found = calibrate(networks, measured)
    tiny = Parts({"residual": 0.1}, 1)
    assert found.predict(tiny) == pytest.approx(0.5 * found.blocks(tiny)) and found.predict(tiny) > 0


def test_blocks_add_up():
    networks, measured = mixed(3, 30, noise=0.0)
    found = calibrate(networks, measured)
    parts = Parts({"residual": 4.0, "fpn-level": 2.0}, 3)
    alone = [Parts({"residual": 1.0}, 1), Parts({"residual": 3.0}, 1), Parts({"fpn-level": 2.0}, 1)]
    assert found.predict(parts) == pytest.approx(sum(map(found.blocks, alone)) + found.intercept)


def test_informative_networks_are_of_all_kinds_and_sizes():
    networks, measured = mixed(0, 100, noise=0.02)
    chosen = informative(networks, 12)
    assert len(set(chosen)) == 12
    kinds = [set(networks[index].kinds) for index in chosen]
    assert sum("mobile-block" in own for own in kinds) > 2 and sum("residual" in own for own in kinds) > 2
    sizes = sorted(parts.uses for parts in networks)
    assert any(networks[i].uses <= sizes[15] for i in chosen) and any(networks[i].uses >= sizes[-15] for i in chosen)
    rng, ours, random = np.random.default_rng(0), [], []
    for seed in range(15):
        networks, measured = mixed(seed, 100, noise=0.015)
        for errors, own in ((ours, informative(networks, 10)), (random, list(rng.permutation(100)[:10]))):
            found = calibrate([networks[i] for i in own], [measured[i] for i in own])
            errors.append(error_of(found, networks, measured))
    assert np.mean(ours) < np.mean(random), "they tell more than as many at random"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=40), st.integers(1, 25))
def test_as_many_as_asked_for(sums, count):
    chosen = informative(one_kind(sums), count)
    assert len(chosen) == len(set(chosen)) == min(count, len(sums)) and set(chosen) <= set(range(len(sums)))
