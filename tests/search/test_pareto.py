"""Dominance and hypervolume against counting cells of a grid."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fastnas.search.pareto import dominates, hypervolume, pareto_front, spread

points = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=7)


@given(points)
def test_the_front_is_what_nothing_dominates(items):
    front = pareto_front(items, lambda item: item)
    for item in items:
        beaten = any(other != item and other[0] <= item[0] and other[1] <= item[1] for other in items)
        assert (item in front) == (not beaten)
    assert not any(dominates(a, b) for a, b in itertools.product(front, front))


@given(points)
def test_hypervolume_counts_the_dominated_cells(items):
    cells = sum(any(x <= i and y <= j for x, y in items) for i in range(8) for j in range(8))
    assert hypervolume(items, (8, 8)) == cells


@given(points, st.integers(1, 4))
def test_spread_takes_the_largest_gain_first(items, count):
    front = sorted(set(pareto_front(items, lambda item: item)))
    chosen = spread(front, count, lambda item: item)
    assert len(chosen) == min(count, len(front)) and set(chosen) <= set(front)
    if len(front) > 1 and count == 1:
        worst, best = [max(a) for a in zip(*front, strict=True)], [min(a) for a in zip(*front, strict=True)]
        reference = tuple(w + 0.1 * (w - b) + 1e-9 for w, b in zip(worst, best, strict=True))
        assert hypervolume(chosen, reference) == max(hypervolume([item], reference) for item in front)
