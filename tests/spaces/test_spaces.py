"""What all spaces promise, on random blueprints of each: children are inside and mapped, genes and counts are right."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.blueprint import BlueprintError, expand
from fastnas.errors import InputError
from fastnas.models import build
from tests.spaces.samples import FILES, small_space

spaces = st.sampled_from(sorted(FILES)).map(small_space)
seeds = st.integers(0, 2**32 - 1)


def check_child(space, parent, child):
    """Inside, different, and every block that the map names exists on either side with weights of one kind."""
    space.validate(child.blueprint)
    assert child.blueprint != parent and child.operations
    ours = {block.name: block.spec for block in expand(child.blueprint).blocks}
    theirs = {block.name: block.spec for block in expand(parent).blocks}
    assert child.blocks and len(set(child.blocks.values())) == len(child.blocks), "no block is the origin of two"
    for name, origin in child.blocks.items():
        assert ours[name].op == theirs[origin].op


@given(spaces, seeds)
def test_samples_and_children_are_inside_and_mapped(space, seed):
    rng = np.random.default_rng(seed)
    parent = space.sample(rng)
    space.validate(parent)
    child = space.mutate(parent, rng)
    check_child(space, parent, child)
    other = space.sample(rng)
    if crossed := space.cross(parent, other, rng):
        check_child(space, parent, crossed)
        assert crossed.blueprint != other


@given(spaces, seeds)
def test_all_is_a_function_of_the_seed(space, seed):
    first, second = (np.random.default_rng(seed) for _ in range(2))
    parent, other = (space.sample(first) for _ in range(2))
    assert [parent, other] == [space.sample(second) for _ in range(2)]
    assert space.mutate(parent, first) == space.mutate(parent, second)
    assert space.cross(parent, other, first) == space.cross(parent, other, second)


@pytest.mark.parametrize("name", sorted(FILES))
def test_crossing_takes_from_both(name):
    space, rng = small_space(name), np.random.default_rng(0)
    pairs = [(space.sample(rng), space.sample(rng)) for _ in range(40)]
    found = [space.cross(*pair, rng) for pair in pairs]
    assert sum(child is not None for child in found) > 15, "most pairs have a child"
    alone = space.ancestor
    assert space.cross(alone, alone, rng) is None, "of one parent nothing new can be made"


@given(spaces, seeds)
def test_genes_round_trip(space, seed):
    blueprint = space.sample(np.random.default_rng(seed))
    genes = space.encode(blueprint)
    assert genes.dtype == np.uint8 and genes.shape == (space.width,)
    assert space.decode(genes) == blueprint


@given(spaces, seeds)
@settings(max_examples=200)
def test_any_genes_are_a_blueprint_or_refused(space, seed):
    genes = np.random.default_rng(seed).integers(0, space.symbols + 1, space.width).astype(np.uint8)
    genes[genes == space.symbols] = 255
    try:
        decoded = space.decode(genes)
    except BlueprintError:
        return
    if _inside(space, decoded):
        assert space.decode(space.encode(decoded)) == decoded


def _inside(space, blueprint) -> bool:
    try:
        space.validate(blueprint)
    except InputError:
        return False
    return True


def check_built_as_counted(space, count: int, seed: int):
    """Parameters of the modules, on the meta device, against the counts of their blocks; block by block."""
    rng, seen = np.random.default_rng(seed), set()
    for _ in range(count):
        blueprint = space.sample(rng)
        if blueprint in seen:
            continue
        seen.add(blueprint)
        network = expand(blueprint)
        with torch.device("meta"):
            detector = build(blueprint)
        assert sum(p.numel() for p in detector.parameters()) == network.params, blueprint.text
        modules = detector.blocks
        for block in network.blocks:
            built = sum(p.numel() for p in modules[block.name].parameters()) if block.name in modules else 0
            assert built == block.params, f"{block.name} of {blueprint.text}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_built_as_counted(name):
    check_built_as_counted(small_space(name), 100, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_thousand_are_built_as_counted(name):
    check_built_as_counted(small_space(name), 1000, seed=2)
