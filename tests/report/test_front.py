import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastnas.blueprint import parse
from fastnas.report.front import find_front, hypervolume
from fastnas.report.table import EMPTY, front_table
from fastnas.search.front import search_front
from fastnas.search.record import FINISHED, REJECTED, Final
from tests.report.studies import ANCESTOR, candidate

BLUEPRINT = parse(ANCESTOR)


def finished(id, ap, ms, final=None):
    """A finished record; `final`: (AP, ms) of its full training."""
    final = final and Final(final[0], final[0] + 0.3, {}, final[1], 12, 100, "w")
    return dataclasses.replace(candidate(BLUEPRINT, ms=ms), id=id, state=FINISHED, ap=ap, ap50=ap + 0.3, final=final)


def ids(records):
    return [record.id for record in records]


def test_search_front_is_fastest_first_and_leaves_out_what_has_no_ap():
    waiting = dataclasses.replace(candidate(BLUEPRINT, ms=1.0), id=9)
    rejected = dataclasses.replace(waiting, id=8, state=REJECTED)
    records = [finished(0, 0.4, 10), finished(1, 0.3, 5), finished(2, 0.29, 6), finished(3, math.nan, 1), waiting, rejected]
    assert ids(search_front(records)) == [1, 0]


def test_front_of_full_trainings_replaces_the_search():
    records = [finished(0, 0.4, 10, (0.5, 10.5)), finished(1, 0.45, 12, (0.48, 12.5)), finished(2, 0.3, 5), finished(3, 0.2, 20)]
    front = find_front(records)
    assert front.full
    assert ids(front.members) == [0]
    assert ids(front.dominated) == [1]
    assert ids(front.untrained) == [2]


def test_hypervolume_by_hand():
    # box 10 ms wide: (0.2, 2 ms) covers 0.2 * 8, (0.5, 6 ms) adds 0.3 * 4, (0.4, 7 ms) is dominated, (0.9, 11 ms) lies outside
    assert hypervolume([(0.5, 6), (0.4, 7), (0.2, 2), (0.9, 11)], 10) == pytest.approx((1.6 + 1.2) / 10)
    assert hypervolume([], 10) == 0


points = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 12)), max_size=8)


@given(points)
def test_hypervolume_equals_counted_cells(found):
    cells = sum(any(ap > a and ms <= m for ap, ms in found) for a in range(10) for m in range(10))
    assert hypervolume([(ap / 10, ms) for ap, ms in found], 10) == pytest.approx(cells / 100)


def test_table_of_the_search():
    text = front_table([finished(0, 0.4, 10.0), finished(7, 0.45, 123.4)])
    assert text.splitlines() == [
        "id     AP   AP50    ms  params    MACs  code",
        "--  -----  -----  ----  ------  ------  -----------------",
        " 0  0.400  0.700  10.0  3.89 M  1.36 G  basic 11-21-21-21",
        " 7  0.450  0.750   123  3.89 M  1.36 G  basic 11-21-21-21",
        "",
        "AP of the short training during the search, ms predicted by the latency table",
    ]


def test_table_of_full_trainings_names_who_is_missing():
    records = [finished(0, 0.4, 10, (0.5, 10.5)), finished(1, 0.45, 12, (0.48, 12.5)), finished(2, 0.3, 5)]
    lines = front_table(records).splitlines()
    assert lines[2].split()[:4] == ["0", "0.500", "0.800", "10.5"]
    assert lines[-3:] == [
        "AP after full training, ms measured on whole networks",
        "also trained in full, but dominated: 1",
        "on the front of the search, not trained in full: 2",
    ]


def test_table_without_a_front():
    assert front_table([candidate(BLUEPRINT)]) == EMPTY


def test_on_a_device_that_is_not_here_the_predicted_latency_counts():
    records = [finished(0, 0.4, 10, (0.5, None)), finished(1, 0.45, 12, (0.48, None)), finished(2, 0.3, 5, (0.4, None))]
    front = find_front(records)
    assert ids(front.members) == [2, 0] and ids(front.dominated) == [1] and front.full and not front.measured
    lines = front_table(records).splitlines()
    assert [line.split()[3] for line in lines[2:4]] == ["5.00", "10.0"]
    assert "AP after full training, ms predicted: the device is not here to measure on" in lines


def test_candidates_without_a_price_are_on_no_front():
    unpriced = dataclasses.replace(finished(3, 0.4, math.nan), state=REJECTED, ap=None, ap50=None)
    assert ids(search_front([finished(0, 0.4, 10), unpriced])) == [0]
