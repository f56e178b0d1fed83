import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastnas.blueprint import Lineage, parse
from fastnas.report.lineage import FOLDED, _layout, short_operation
from fastnas.search.record import FINISHED, REJECTED
from tests.report.studies import ANCESTOR, candidate

RECORD = candidate(parse(ANCESTOR))


def record(id, parent=None, state=FINISHED):
    return dataclasses.replace(RECORD, id=id, lineage=Lineage(parent), state=state)


def places(records):
    nodes, edges = _layout(records)
    return {node.record.id: (node.column, node.row) for node in nodes}, [(a.record.id, b.record.id) for a, b in edges]


def test_small_families_come_first_and_a_parent_stands_beside_its_first_child():
    found, edges = places([record(0), record(1, 0), record(2, 1), record(3, 1), record(4, 0)])
    assert found == {0: (0, 0), 4: (1, 0), 1: (1, 1), 2: (2, 1), 3: (2, 2)}
    assert sorted(edges) == [(0, 1), (0, 4), (1, 2), (1, 3)]


@given(st.lists(st.integers(-3, 60), min_size=1, max_size=40), st.data())
def test_every_candidate_has_its_own_place(parents, data):
    """Whatever the parents are: missing, the candidate itself, younger ones in a circle."""
    states = data.draw(st.lists(st.sampled_from([FINISHED, REJECTED]), min_size=len(parents), max_size=len(parents)))
    parents = [parent if parent >= 0 else None for parent in parents]
    records = [record(id, parent, states[id]) for id, parent in enumerate(parents)]
    nodes, edges = _layout(records)
    assert sorted(record.id for node in nodes for record in node.records) == list(range(len(parents)))
    assert len({(node.column, node.row) for node in nodes}) == len(nodes)
    assert all(child.column == parent.column + 1 and child.row >= parent.row for parent, child in edges)


def test_a_lineage_deeper_than_the_stack():
    found, _ = places([record(id, id - 1 if id else None) for id in range(5000)])
    assert found[4999] == (4999, 0)


def test_many_rejected_children_are_one_node():
    records = [record(0), *(record(id, 0, REJECTED) for id in range(1, FOLDED + 2)), record(9, 0)]
    nodes, _ = _layout(records)
    assert sorted(len(node.records) for node in nodes) == [1, 1, FOLDED + 1]
    assert len(_layout(records[: FOLDED + 1])[0]) == FOLDED + 1  # up to FOLDED they stand alone


@pytest.mark.parametrize(
    "operations, short",
    [
        ((), ""),
        (("add stage 5",), "add stage 5"),
        (("expand stage 2 after block 3", "add stage 5"), "expand stage 2 +1"),
        (("swap boundary 1|2 by +1",), "swap boundary 1|2"),
        (("swap doubling of block 4 and 5", "x", "y"), "swap doubling +2"),
        (("stage 3 copies 0 -> 2", "stage 4 copies 1 -> 0"), "stage 3 copies +1"),
        (("x" * 100,), "x" * 16 + "…"),
    ],
)
def test_short_operation(operations, short):
    assert short_operation(operations) == short


def test_all_nodes_and_edges_are_drawn(grown):
    from fastnas.report.facts import gather
    from fastnas.report.lineage import lineage_svg

    facts = gather(grown)
    svg = lineage_svg(facts)
    assert len(re.findall('class="edge"', svg)) == len(re.findall("<rect", svg)) - 1
    assert len(re.findall('class="node front', svg)) == len(facts.front.members)
    assert "NaN" not in svg and "nan" not in svg
