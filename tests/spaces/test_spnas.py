"""The serial level of SP-NAS: mutations stay in the space and carry every block's origin."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastnas.blueprint import expand, parse
from fastnas.errors import InputError
from fastnas.spaces import VEGA_V1, ModularRules, ModularSpace, SerialRules, SerialSpace
from fastnas.spaces.spnas import add_stage, code_of, genome_of, swap_boundary, swap_doubling
from fastnas.spaces.spnas import expand as grow
from tests.strategies import codes

ANCESTOR = parse("160x192/basic:1-2-2-2,base=16,stem=3x3/fpn:32/rpn:100/rcnn:128/classes:4")
seeds = st.integers(0, 2**32 - 1)


@given(codes(), seeds)
def test_expand_inserts_one_block_after_the_first_of_a_stage(code, seed):
    grown, _ = grow(genome_of(code), np.random.default_rng(seed))
    new = [(s, i) for s, stage in enumerate(grown) for i, gene in enumerate(stage) if gene[1] is None]
    assert len(new) == 1 and new[0][1] > 0 and grown[new[0][0]][new[0][1]][0] == "1"
    del grown[new[0][0]][new[0][1]]
    assert grown == genome_of(code)


@given(codes(), seeds, st.integers(1, 4))
def test_swap_boundary_keeps_blocks_in_order_and_stages_filled(code, seed, step):
    genome = genome_of(code)
    moved, what = swap_boundary(genome, np.random.default_rng(seed), step)
    assert all(moved) and len(moved) == len(genome)
    assert [g for stage in moved for g in stage] == [g for stage in genome for g in stage]
    assert bool(what) == (code_of(moved) != code or [len(s) for s in moved] != [len(s) for s in genome])


@given(codes(), seeds)
def test_swap_doubling_moves_one_doubling_by_one_block(code, seed):
    genome = genome_of(code)
    moved, what = swap_doubling(genome, np.random.default_rng(seed))
    before, after = code.replace("-", ""), code_of(moved).replace("-", "")
    assert [len(s) for s in moved] == [len(s) for s in genome]
    assert [g[1] for s in moved for g in s] == [g[1] for s in genome for g in s], "blocks stay, only their digits change"
    differ = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert (len(differ) == 2 and differ[1] == differ[0] + 1 and bool(what)) or (not differ and not what)


def test_add_stage_appends_one_block():
    assert code_of(add_stage(genome_of("11-2"))[0]) == "11-2-1"


@given(seeds)
def test_children_are_new_valid_and_mapped(seed):
    space = SerialSpace(ANCESTOR, SerialRules(max_blocks=12, max_stages=5))
    rng = np.random.default_rng(seed)
    parent = ANCESTOR
    for _ in range(4):
        mutation = space.mutate(parent, rng)
        child = mutation.blueprint
        space.validate(child)
        assert child != parent and child.replace(backbone=parent.backbone) == parent
        names = {b.name for b in expand(child).blocks}
        origins = {b.name for b in expand(parent).blocks}
        assert set(mutation.blocks) <= names and set(mutation.blocks.values()) <= origins
        stages = [origin for name, origin in mutation.blocks.items() if name.startswith("backbone.stage")]
        assert sorted(stages) == sorted(n for n in origins if n.startswith("backbone.stage")), "no block of the parent is lost"
        assert stages == sorted(stages, key=lambda n: [int(p[5:]) for p in n.split(".")[1:]]), "and their order is kept"
        parent = child


@given(seeds)
def test_mutation_and_sampling_are_functions_of_the_seed(seed):
    space = SerialSpace(ANCESTOR)
    assert space.mutate(ANCESTOR, np.random.default_rng(seed)) == space.mutate(ANCESTOR, np.random.default_rng(seed))
    space.validate(space.sample(np.random.default_rng(seed)))


def test_operations_come_at_their_rates():
    rng = np.random.default_rng(0)
    space = SerialSpace(parse("160x192/basic:111-211-211-211/fpn:32/rpn:100/rcnn:128/classes:4"), VEGA_V1)
    genome = genome_of(space.ancestor.backbone.code)
    drawn = [space._draw(genome, rng)[1].split(" ")[0] for _ in range(6000)]
    for name, rate in (("expand", VEGA_V1.p_expand), ("swap", VEGA_V1.p_swap), ("add", VEGA_V1.p_add_stage)):
        assert drawn.count(name) / 6000 == pytest.approx(rate, abs=0.03)


def test_copies_of_stages_do_not_grow():
    """A child would have none of their connectors."""
    parallel = ANCESTOR.replace(backbone=dataclasses.replace(ANCESTOR.backbone, parallel="1-0-0-0"))
    for space, rules in ((SerialSpace, SerialRules()), (ModularSpace, ModularRules())):
        with pytest.raises(InputError, match="leave parallel=1-0.* out"):
            space(parallel, rules)


def test_bounds_and_rates_are_checked():
    with pytest.raises(InputError, match="4 blocks, the space allows 5 to 60"):
        SerialSpace(ANCESTOR, SerialRules(min_blocks=5))
    with pytest.raises(InputError, match="add up to more than 0 and to 1"):
        SerialSpace(ANCESTOR, SerialRules(p_expand=0.9))
    with pytest.raises(InputError, match="swap must name"):
        SerialSpace(ANCESTOR, SerialRules(swap=("stage",)))
    full = SerialSpace(ANCESTOR, SerialRules(p_expand=1.0, p_swap=0, p_add_stage=0, max_blocks=4))
    assert full.mutate(ANCESTOR, np.random.default_rng(0)) is None


def operations(rules, code="111111-211111"):
    """What 200 seeds do to a backbone, one operation each."""
    parent = ANCESTOR.replace(backbone=dataclasses.replace(ANCESTOR.backbone, code=code))
    space = SerialSpace(parent, rules)
    return [space.mutate(parent, np.random.default_rng(seed)).operations[0] for seed in range(200)]


@pytest.mark.parametrize("most", [1, 2, 4])
def test_a_boundary_moves_max_step_blocks_at_most(most):
    done = operations(SerialRules(p_expand=0, p_swap=1, p_add_stage=0, operations=1, swap=("boundary",), max_step=most))
    assert {int(what.split()[-1]) for what in done} == {step for step in range(-most, most + 1) if step}


@pytest.mark.parametrize(
    ("swap", "share"), [(("boundary",), 0.0), (("doubling",), 1.0), (("boundary", "doubling"), 0.5)]
)
def test_swaps_move_what_the_rules_name(swap, share):
    done = operations(SerialRules(p_expand=0, p_swap=1, p_add_stage=0, operations=1, swap=swap))
    assert sum(what.startswith("swap doubling") for what in done) / len(done) == pytest.approx(share, abs=0.1 * (0 < share < 1))
    assert all(what.startswith("swap ") for what in done)
    assert SerialRules().swap == ("boundary", "doubling")
