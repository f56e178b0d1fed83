"""Who gets the full training."""

from hypothesis import given
from hypothesis import strategies as st

from fastnas.blueprint import Lineage, parse
from fastnas.search.front import finalists, search_front
from fastnas.search.record import FAILED, FINISHED, REJECTED, RUNNING, WAITING, Record
from tests.search.fakes import ANCESTOR

BLUEPRINT = parse(ANCESTOR)
scores, latencies = st.integers(0, 20).map(lambda n: n / 20), st.integers(1, 20).map(float)
STATES = [FINISHED, FINISHED, FINISHED, WAITING, RUNNING, FAILED, REJECTED]
scattered = st.lists(st.tuples(st.one_of(scores, st.just(float("nan"))), latencies, st.sampled_from(STATES)), max_size=12)
chains = st.integers(0, 12).map(lambda size: [(n / 20, n / 10, FINISHED) for n in range(1, size + 1)])  # all on the front
children = st.one_of(scattered, chains, st.tuples(scattered, chains).map(lambda both: both[0] + both[1]))


def record(id, ap, ms, state):
    return Record(id, BLUEPRINT, Lineage(0 if id else None, (), {}), state, 1, 1, ms, ms, ms, ap=ap)


@given(scores, latencies, children, st.integers(1, 6))
def test_finalists_are_the_ancestor_and_some_of_the_front(ap, ms, others, count):
    records = [record(0, ap, ms, FINISHED), *(record(id, *values) for id, values in enumerate(others, 1))]
    chosen, front = [r.id for r in finalists(records, count)], [r.id for r in search_front(records)]
    assert 0 in chosen, "the ancestor is what the others are compared with"
    assert len(chosen) == len(set(chosen)) <= count + 1
    assert set(chosen) <= {r.id for r in records if r.state == FINISHED}
    assert set(chosen) - {0} <= set(front)
    assert len(set(chosen) & set(front)) >= min(count, len(front))


@given(children, st.integers(1, 6))
def test_an_ancestor_that_failed_is_no_finalist(others, count):
    records = [record(0, 0.5, 1.0, FAILED), *(record(id, *values) for id, values in enumerate(others, 1))]
    chosen = [r.id for r in finalists(records, count)]
    assert 0 not in chosen and len(chosen) == min(count, len(search_front(records)))
