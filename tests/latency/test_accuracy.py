"""The published figures, checked by hand."""

import pytest

from fastnas.latency import accuracy


def test_figures():
    predicted, measured = [11.0, 19.0, 30.0], [10.0, 20.0, 30.0]
    assert accuracy.errors(predicted, measured) == pytest.approx([10, -5, 0])
    assert accuracy.mape(predicted, measured) == pytest.approx(5)
    assert accuracy.within(6, predicted, measured) == pytest.approx(200 / 3)
    assert accuracy.coverage([9, 21, 29], [12, 22, 31], measured) == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("second", "tau"),
    [([1, 2, 3, 4], 1), ([4, 3, 2, 1], -1), ([1, 3, 2, 4], (5 - 1) / 6), ([1, 1, 2, 3], 5 / (6 * 5) ** 0.5)],
)
def test_kendall_tau(second, tau):
    assert accuracy.kendall_tau([1, 2, 3, 4], second) == pytest.approx(tau)


def test_kendall_tau_without_order():
    assert accuracy.kendall_tau([1, 1, 1], [1, 2, 3]) is None


def test_proportional_mape_leaves_the_predicted_one_out():
    assert accuracy.proportional_mape([1, 2, 3], [2, 4, 6]) == pytest.approx(0)
    assert accuracy.proportional_mape([1, 1], [1, 2]) == pytest.approx((100 + 50) / 2)
    assert accuracy.proportional_mape([1], [1]) is None
