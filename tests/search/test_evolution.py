"""The strategy: parents are members of the front, and those with fewer children come first."""

import pytest

from fastnas.blueprint import Lineage, parse
from fastnas.search.evolution import Evolution
from fastnas.search.record import FAILED, FINISHED, REJECTED, Record
from fastnas.spaces import SerialRules, SerialSpace
from tests.search.fakes import ANCESTOR

SEEDS = range(200)


def candidate(id, code, ap, ms, state=FINISHED, parent=0):
    lineage = Lineage(parent if id else None, (), {})
    blueprint = parse(ANCESTOR.replace("basic:1-2-1", f"basic:{code}"))
    return Record(id, blueprint, lineage, state, 1, 1, ms, ms, ms, ap=ap if state == FINISHED else None)


def parents(records):
    """The parent that every seed chooses."""
    space = SerialSpace(parse(ANCESTOR))
    return [Evolution(space, seed).ask(records)[1].parent for seed in SEEDS]


def test_parents_are_the_finished_members_of_the_front():
    records = [
        candidate(0, "1-2-1", 0.30, 1.0),
        candidate(1, "11-2-1", 0.29, 2.0),  # slower and worse than 0
        candidate(2, "1-21-1", 0.50, 3.0),
        candidate(3, "1-2-11", 0.50, 3.5),  # as good as 2 but slower
        candidate(4, "1-211-1", 0.0, 0.5, FAILED),
        candidate(5, "111-2-1", 0.0, 0.5, REJECTED),
    ]
    assert set(parents(records)) == {0, 2}


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0)])
def test_parents_with_fewer_children_are_preferred(first, second):
    """Both are on the front; one has nine children, which are not, the other none: drawn as 1/10 to 1."""
    codes = [f"{10**size // 9}-2-1" for size in range(8, 17)]  # too deep to be drawn again, which would be refused
    records = [candidate(0, "1-2-1", 0.3, 1.0), candidate(1, "1-2-1-1", 0.5, 2.0, parent=None)]
    records += [candidate(id, code, 0.1, 9.0, parent=second) for id, code in enumerate(codes, 2)]
    chosen = parents(records)
    assert chosen.count(first) / len(SEEDS) == pytest.approx(10 / 11, abs=0.07) and set(chosen) == {0, 1}


def test_crosses_the_share_of_children_that_the_rules_name():
    """Once there are two on the front; the child inherits from its parent, and its operations name the other."""
    records = [candidate(0, "111-2-1", 0.3, 1.0), candidate(1, "1-2-111", 0.5, 2.0, parent=None)]
    for share in (0.0, 0.4):
        space = SerialSpace(parse(ANCESTOR), SerialRules(p_cross=share))
        asked = [Evolution(space, seed).ask(records) for seed in SEEDS]
        crossed = [(blueprint, lineage) for blueprint, lineage in asked if "cross with" in lineage.operations[0]]
        assert len(crossed) / len(SEEDS) <= share + 0.1 and bool(crossed) == bool(share)
        for blueprint, lineage in crossed:
            assert lineage.operations[0] == f"cross with candidate {1 - lineage.parent}"
            assert blueprint.backbone.code in ("111-2-111", "1-2-1") and lineage.blocks
        assert all(len(asked_of) == 2 for asked_of in asked)
        alone = Evolution(space, 0).ask(records[:1])
        assert "cross" not in alone[1].operations[0], "one parent has nobody to be crossed with"
