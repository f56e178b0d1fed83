"""Interpolation between the lines of a grid: exact where it must be, honest about where it is not."""

import numpy as np
import pytest

from fastnas.latency.grid import AXES, Grid

CHANNELS, SIDES, RATIOS = (16, 32, 64, 128), (8, 16, 32, 64, 128), (0.25, 0.5, 1, 2)


def grid(ms, model=lambda ratio, channels, side: 1.0 + 0 * side, keep=lambda ratio, channels, side: True) -> Grid:
    points = np.array([p for r in RATIOS for c in CHANNELS for s in SIDES if keep(*(p := (r, c, s)))], float)
    return Grid(points, ms(*points.T), model(*points.T))


def power(ratio, channels, side):
    return ratio**0.7 * channels**1.1 * side**1.9


def test_measured_points_are_themselves():
    made = grid(power)
    for point in [(1, 16, 8), (2, 64, 128), (1, 64, 32), (0.5, 16, 128), (2, 128, 128)]:
        found = made(*point)
        assert found.ratio == pytest.approx(power(*point)) and found.axes == () and found.inside
    assert made.error(()) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_power_laws_between_lines_are_exact(seed):
    random = np.random.default_rng(seed)
    made, point = grid(power), (random.uniform(0.25, 2), random.uniform(16, 128), random.uniform(8, 128))
    found = made(*point)
    assert found.ratio == pytest.approx(power(*point)) and found.inside and found.axes == AXES
    assert made.error(AXES) == pytest.approx(0, abs=1e-8)


def test_only_what_the_model_misses_is_interpolated():
    def model(ratio, channels, side):
        return 1 + 1e-4 * ratio * channels**2 * side**2

    made = grid(lambda *point: 1.3 * model(*point), model)
    assert made(1.3, 40, 20).ratio == pytest.approx(1.3)


def test_axes_say_where_a_point_lies_between_lines():
    made = grid(power)
    assert made(1, 32, 20).axes == ("side",)
    assert made(1, 40, 16).axes == ("channels",)
    assert made(1.5, 32, 16).axes == ("ratio",)


def test_beyond_the_ends_and_in_holes_the_nearest_ratio_goes_on():
    made = grid(lambda r, c, side: 2.0 + 0 * side, keep=lambda ratio, channels, side: channels < 128 or side <= 32)
    for point in [(1, 16, 256), (1, 16, 2), (4, 128, 8), (1, 512, 8), (1, 128, 64), (1, 120, 50)]:
        found = made(*point)
        assert found.ratio == pytest.approx(2.0) and not found.inside, point
    assert made(1, 128, 32).inside


def test_the_error_is_that_of_lines_left_out():
    def bent(ratio, channels, side):
        return np.where(np.asarray(side) == 32, 1.5, 1.0)

    made = grid(bent)
    # Leaving out 32 predicts 1 for 1.5; leaving out 16 or 64 predicts sqrt(1.5) for 1; 8 and 128 lie between no others.
    wrong = {round(float(error), 6) for error in made.left_out(("side",))}
    assert wrong == {round(1 - 1 / 1.5, 6), round(1.5**0.5 - 1, 6)}
    assert made.error(("side",)) == pytest.approx(1 - 1 / 1.5)
    assert made.error(("channels",)) == pytest.approx(0, abs=1e-12)


def test_too_few_lines_say_no_error():
    points = np.array([(1, 16, 8), (1, 16, 16)], float)
    assert Grid(points, np.ones(2), np.ones(2)).error(("side",)) is None
