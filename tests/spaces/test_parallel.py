"""The parallel level of SP-NAS: codes come at the rates of the prior, mutations are small, stages cost what they cost alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastnas.blueprint import Blueprint, Fpn, RoiHead, Rpn, SerialBackbone, expand, parse
from fastnas.errors import InputError
from fastnas.spaces import ParallelRules, ParallelSpace
from tests.strategies import c4s, codes

ANCESTOR = parse("160x192/basic:1-21-2-2,base=16,stem=3x3/fpn:32/rpn:100/rcnn:128/classes:4")
SHORT = "160x192/basic:1-21-2-2,base=16,stem=3x3{}/fpn:32,levels=2-4/rpn:100/rcnn:128/classes:4"  # stage 4 is not used
seeds = st.integers(0, 2**32 - 1)


@st.composite
def spaces(draw) -> ParallelSpace:
    """Of any serial backbone, also with stages that the neck does not take or that the head runs on regions."""
    norm = draw(st.sampled_from(["bn", "gn"]))
    backbone = SerialBackbone(draw(st.sampled_from(["basic", "bottleneck"])), draw(codes()), 8, norm=norm)
    last = draw(st.integers(2, backbone.maps[-1]))
    necks = st.tuples(st.just(Fpn(8, f"2-{last}")), st.just(Rpn(10)), st.just(RoiHead(8)))
    neck, rpn, head = draw(necks | c4s(backbone) if backbone.stages > 1 else necks)
    return ParallelSpace(Blueprint((65, 96), backbone, neck, rpn, head, 3), ParallelRules(tied=draw(st.booleans())))


def digits(blueprint) -> list[int]:
    return [int(digit) for digit in (blueprint.backbone.parallel or "0-0-0-0").split("-")]


@given(spaces(), seeds)
def test_the_sum_of_the_stages_is_the_network(space, seed):
    """What the transitions add along a walk are the blocks, parameters and MACs of the blueprint, exactly."""
    blueprint = space.sample(np.random.default_rng(seed))
    space.validate(blueprint)
    steps = {(t.start, t.symbol): t for t in space.transitions()}
    assert len(steps) == space.width * space.symbols
    state, prices, params, macs = 0, Counter(), 0, 0
    for gene in space.encode(blueprint):
        step = steps[state, int(gene)]
        for network, sign in ((step.after, 1), (step.before, -1)):
            if network is not None:
                expanded = expand(network)
                prices.update({pair: sign * count for pair, count in expanded.prices().items()})
                params, macs = params + sign * expanded.params, macs + sign * expanded.macs
        state = step.end
    assert space.accepting(state) and not any(map(space.accepting, range(state)))
    network = expand(blueprint)
    assert {pair: count for pair, count in prices.items() if count} == network.prices()
    assert (params, macs) == (network.params, network.macs)


@pytest.mark.parametrize("draw", ["sample", "mutate"])
def test_copies_come_at_the_rates_of_the_prior(draw):
    """Of samples, and of children where the rules say that all are drawn anew, as the first release does."""
    rules = ParallelRules(p_draw=1, p_cross=0)
    space, rng = ParallelSpace(ANCESTOR, rules), np.random.default_rng(0)
    parent = ANCESTOR.replace(backbone=SerialBackbone("basic", "1-21-2-2", 16, "3x3", parallel="3-3-3-3"))
    space.validate(parent)
    drawn = [space.sample(rng) if draw == "sample" else space.mutate(parent, rng).blueprint for _ in range(800)]
    counts = Counter(digit for blueprint in drawn for digit in digits(blueprint))
    for copies, rate in enumerate(rules.prior):
        assert counts[copies] / 3200 == pytest.approx(rate, abs=0.03)


@given(seeds, st.integers(1, 3), st.sampled_from([True, False]))
def test_other_children_differ_in_few_copies(seed, operations, tied):
    space = ParallelSpace(ANCESTOR, ParallelRules(p_draw=0, operations=operations, tied=tied))
    rng = np.random.default_rng(seed)
    parent = space.sample(rng)
    child = space.mutate(parent, rng)
    changed = [abs(a - b) for a, b in zip(digits(parent), digits(child.blueprint), strict=True)]
    assert 1 <= sum(changed) <= operations and len(child.operations) == sum(map(bool, changed))
    assert child.blueprint.replace(backbone=ANCESTOR.backbone) == ANCESTOR


@given(seeds, st.sampled_from([True, False]))
def test_all_weights_but_those_of_new_connectors_have_an_origin(seed, tied):
    space, rng = ParallelSpace(ANCESTOR, ParallelRules(tied=tied, p_draw=0.5)), np.random.default_rng(seed)
    parent = space.sample(rng)
    child = space.mutate(parent, rng)
    ours, theirs = ({block.name for block in expand(b).blocks if block.params} for b in (child.blueprint, parent))
    assert {name for name in ours - set(child.blocks) if not name.endswith("connector")} == set()
    for name in ours:
        kept = name if name in theirs else None if name.endswith("connector") else name.replace(f".{name.split('.')[2]}", "")
        assert child.blocks.get(name) == kept, "of the same copy, else of the backbone's own stage"


def test_a_small_space_runs_out():
    rules = ParallelRules(prior=(1, 0), p_draw=1)
    assert ParallelSpace(ANCESTOR, rules).mutate(ANCESTOR, np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SHORT.format(",parallel=0-4-0-0"), "4 copies of stage 2, the space allows 0 to 3"),
        (SHORT.format(",parallel=0-0-0-1"), "copies of stage 4, which the neck does not take"),
        (SHORT.format(",parallel=0-1-0-0,tied=no"), "tied=no, rules.tied says yes"),
        (SHORT.format("").replace("1-21-2-2", "1-21-2-2-1"), "more than the copies of stages"),
        (SHORT.format("").replace("rpn:100", "rpn:200"), "more than the copies of stages"),
        (SHORT.format("").replace("basic:1-21-2-2,base=16,stem=3x3", "mobilenetv2:0.5"), "more than the copies of stages"),
    ],
)
def test_what_lies_outside_is_refused(text, says):
    space = ParallelSpace(parse(SHORT.format("")))
    assert space.width == 3
    with pytest.raises(InputError, match=says):
        space.validate(parse(text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SHORT.format(",parallel=0-4-0-0"), "4 copies"),
        (SHORT.format("").replace("basic:1-21-2-2,base=16,stem=3x3", "mobilenetv2:0.5"), "no backbone with a code"),
        (SHORT.format(",c1=yes").replace("levels=2-4", "levels=1-1"), "takes no stage"),
    ],
)
def test_ancestors_that_have_no_such_space(text, says):
    with pytest.raises(InputError, match=says):
        ParallelSpace(parse(text))
