"""Weight inheritance along the lineage."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.blueprint import Lineage, expand, parse
from fastnas.errors import FastnasError, InputError
from fastnas.models import build
from fastnas.models.inherit import inherit
from fastnas.models.start import check_start, start_from
from fastnas.models.weights import save_state
from fastnas.spaces import ParallelRules, ParallelSpace, SerialRules, SerialSpace
from fastnas.spaces.space import same_blocks

PARENT = "64x80/{block}:1-21-2,base=16,stem=3x3,norm={norm}/fpn:16/rpn:20,scale=4/rcnn:16/classes:3"


def trained(blueprint):
    """A detector whose every tensor was moved away from its initial value, as training does."""
    detector = build(blueprint)
    with torch.no_grad():
        for tensor in detector.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.2)
    return detector.eval()


def dense(detector, images):
    values = detector.eval().dense(images)
    return [values[f"neck.p{level}"] for level in range(2, 5)] + [values[f"rpn.scores{level}"] for level in range(2, 5)]


@pytest.mark.parametrize("block", ["basic", "bottleneck", "resnext32x4d"])
@pytest.mark.parametrize("norm", ["bn", "gn"])
@torch.no_grad()
def test_expand_keeps_the_function(block, norm):
    """The child's output equals the parent's right after expand, bit for bit up to float rounding."""
    torch.manual_seed(0)
    parent_blueprint = parse(PARENT.format(block=block, norm=norm))
    space = SerialSpace(parent_blueprint, SerialRules(p_expand=1.0, p_swap=0, p_add_stage=0, operations=3))
    parent, images = trained(parent_blueprint), torch.randn(2, 3, 64, 80)
    for seed in range(4):
        mutation = space.mutate(parent_blueprint, np.random.default_rng(seed))
        child = build(mutation.blueprint)
        report = inherit(child, parent.state_dict(), Lineage(0, mutation.operations, mutation.blocks))
        assert not report.mismatched and len(expand(mutation.blueprint).blocks) == len(expand(parent_blueprint).blocks) + 3
        for own, other in zip(dense(child, images), dense(parent, images), strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=0)


@torch.no_grad()
def test_a_new_stage_leaves_the_finer_levels_as_they_were():
    blueprint = parse(PARENT.format(block="basic", norm="bn"))
    space = SerialSpace(blueprint, SerialRules(p_expand=0, p_swap=0, p_add_stage=1.0, operations=1))
    mutation = space.mutate(blueprint, np.random.default_rng(0))
    parent, child, images = trained(blueprint), build(mutation.blueprint), torch.randn(1, 3, 64, 80)
    inherit(child, parent.state_dict(), Lineage(0, mutation.operations, mutation.blocks))
    for own, other in zip(dense(child, images)[:3], dense(parent, images)[:3], strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)


def parallel_child(parent, counts, norm, tied):
    """A blueprint with copies `counts` of the stages, and its lineage from `parent`: the one that the space gives it."""
    space = ParallelSpace(parent, ParallelRules(tied=tied, p_draw=1.0))
    wanted = parse(PARENT.format(block="basic", norm=f"{norm},parallel={counts},tied={'yes' if tied else 'no'}"))
    rng = np.random.default_rng(0)
    found = next(child for child in iter(lambda: space.mutate(parent, rng), None) if child.blueprint == wanted)
    return wanted, Lineage(0, found.operations, found.blocks)


@pytest.mark.parametrize("norm", ["bn", "gn", "gnws"])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_new_copies_of_a_stage_leave_the_function_as_it_was(norm, tied):
    """The parallel level starts from a serial network: its connectors are new, its blocks (or the copies' own) are not."""
    torch.manual_seed(0)
    blueprint = parse(PARENT.format(block="basic", norm=norm))
    child_blueprint, lineage = parallel_child(blueprint, "1-0-2", norm, tied)
    parent, child, images = trained(blueprint), build(child_blueprint).eval(), torch.randn(1, 3, 64, 80)
    report = inherit(child, parent.state_dict(), lineage)
    assert not report.mismatched and {name.split(".")[-4] for name in report.fresh} == {"connector"}
    for own, other in zip(dense(child, images), dense(parent, images), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("tied", "before", "after", "keeps"),
    [
        (True, "1-0-0", "1-0-2", True),
        (True, "0-0-1", "0-2-1", True),
        (True, "0-1-0", "0-2-0", False),  # the second copy feeds back through the connector of the first
        (False, "0-1-0", "0-2-0", True),
        (False, "0-1-1", "0-2-1", True),
        (False, "0-1-2", "0-2-2", False),  # the second copy of stage 3 went on from the first of stage 2
        (True, "1-0-1", "1-1-1", False),  # the copy of stage 3 went on from the backbone's own stage 2
        (True, "0-2-0", "0-1-0", False),
        (False, "0-2-0", "0-1-0", False),
    ],
)
@torch.no_grad()
def test_where_copies_beside_others_keep_the_function(tied, before, after, keeps):
    """As `fastnas.spaces.parallel` says: not where copies go, share a connector, or get another input."""
    torch.manual_seed(0)
    blueprint = parse(PARENT.format(block="basic", norm=f"bn,parallel={before},tied={'yes' if tied else 'no'}"))
    child_blueprint, lineage = parallel_child(blueprint, after, "bn", tied)
    parent, child, images = trained(blueprint), build(child_blueprint).eval(), torch.randn(1, 3, 64, 80)
    inherit(child, parent.state_dict(), lineage)
    same = [torch.equal(own, other) for own, other in zip(dense(child, images), dense(parent, images), strict=True)]
    assert all(same) == keeps


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_every_tensor_is_copied_fresh_or_mismatched(seed):
    rng = np.random.default_rng(seed)
    blueprint = parse(PARENT.format(block="basic", norm="bn"))
    mutation = SerialSpace(blueprint, SerialRules(operations=3)).mutate(blueprint, rng)
    parent, child = trained(blueprint), build(mutation.blueprint)
    before = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    report = inherit(child, parent.state_dict(), Lineage(0, mutation.operations, mutation.blocks))
    after, source = child.state_dict(), parent.state_dict()
    assert sorted(report.copied + report.fresh + report.mismatched) == sorted(after)
    for name in report.copied:
        block, key = next((b, name[len(b) + 1 :]) for b in child.blocks if name.startswith(f"{b}."))
        tensor = source[f"{mutation.blocks[block]}.{key}"]
        assert torch.equal(after[name], tensor) or "norm" in name, "copied, or silenced with its block"
    for name in report.fresh + report.mismatched:
        if "norm" not in name and "lateral" not in name:
            assert torch.equal(after[name], before[name])
    found = child.eval()(torch.randn(1, 3, 64, 80))
    assert all(torch.isfinite(value).all() for value in found[0].values())


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("norm", ["bn", "gn"])
@torch.no_grad()
def test_a_residual_block_that_was_copied_in_part_starts_silent(block, norm):
    """1-21-2 to 1-12-2: the second block of stage 2 has other inputs, so its first convolution is new and its norms are old."""
    torch.manual_seed(0)
    blueprint = parse(PARENT.format(block=block, norm=norm))
    parent = trained(blueprint)
    child = build(parse(PARENT.format(block=block, norm=norm).replace("1-21-2", "1-12-2"))).eval()
    report = inherit(child, parent.state_dict(), Lineage(0, ("swap",), {name: name for name in child.blocks}))
    first, part, whole = "backbone.stage2.block1", "backbone.stage2.block2", "backbone.stage1.block1"
    last = f"norm{child.get_submodule(part).depth}"
    assert f"{part}.conv1.weight" in report.mismatched and f"{part}.{last}.weight" in report.copied
    for name in (first, part):
        module = child.get_submodule(name)
        x = torch.randn(2, module.conv1.in_channels, 16, 20)
        shortcut = x if module.downsample is None else module.downsample(x)
        torch.testing.assert_close(module(x), torch.relu(shortcut), rtol=0, atol=0)
    assert child.get_submodule(whole).last_norm.weight.any(), "a block that was copied whole goes on as it was"


def test_a_load_in_which_nothing_fits_is_refused():
    blueprint = parse(PARENT.format(block="basic", norm="bn"))
    with pytest.raises(FastnasError, match="another network"):
        inherit(build(blueprint), {"x": torch.zeros(1)}, Lineage(7, (), {"backbone.stem": "backbone.stem"}))


@torch.no_grad()
def test_a_detector_starts_from_a_backbone_alone(tmp_path):
    """Everything else stays fresh: nothing is silenced that has no parent to keep."""
    blueprint = parse(PARENT.format(block="basic", norm="bn"))
    donor = trained(blueprint)
    state = {name: tensor for name, tensor in donor.state_dict().items() if name.startswith("backbone.")}
    save_state(tmp_path / "w.safetensors", state, blueprint, [])
    check_start(blueprint, tmp_path / "w.safetensors")
    torch.manual_seed(0)
    child = build(blueprint.replace(classes=7))
    fresh = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    report = start_from(child, tmp_path / "w.safetensors")
    assert len(report.copied) == len(state) and not report.mismatched
    for name, tensor in child.state_dict().items():
        assert torch.equal(tensor, donor.state_dict()[name] if name in state else fresh[name]), name


@torch.no_grad()
def test_heads_that_fit_are_taken_along(tmp_path):
    blueprint = parse(PARENT.format(block="basic", norm="bn"))
    donor = trained(blueprint)
    save_state(tmp_path / "w.safetensors", donor.state_dict(), blueprint, [])
    child = build(blueprint.replace(classes=5))
    report = start_from(child, tmp_path / "w.safetensors")
    assert report.mismatched == [f"head.box.{layer}.{leaf}" for layer in ("cls_score", "bbox_pred") for leaf in ("weight", "bias")]
    for own, other in zip(dense(child, torch.ones(1, 3, 64, 80)), dense(donor, torch.ones(1, 3, 64, 80)), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (PARENT.format(block="basic", norm="gn"), "backbone.stem.norm1.* has shape"),
        (PARENT.format(block="basic", norm="bn").replace("1-21-2", "1-211-2"), "block3.conv1.weight is missing"),
        (PARENT.format(block="bottleneck", norm="bn"), "conv1.weight has shape"),
    ],
)
def test_another_backbone_is_no_start(tmp_path, text, says):
    donor = parse(PARENT.format(block="basic", norm="bn"))
    save_state(tmp_path / "w.safetensors", build(donor).state_dict(), donor, [])
    with pytest.raises(InputError, match=says):
        check_start(parse(text), tmp_path / "w.safetensors")


@torch.no_grad()
def test_a_deeper_efficientnet_starts_as_its_parent():
    """Mobile blocks that a stage gets at its end add their input: they start as identities, and the rest keeps its weights."""
    torch.manual_seed(0)
    text = "64x96/efficientnet:0.35x{depth}/bifpn:16,repeats=1,levels=3-5/effdet:1,topk=50/classes:3"
    parent_blueprint, child_blueprint = (parse(text.format(depth=depth)) for depth in ("0.4", "0.9"))
    parent, child, images = trained(parent_blueprint), build(child_blueprint), torch.randn(1, 3, 64, 96)
    blocks = same_blocks(parent_blueprint, child_blueprint)
    new = {block.name for block in expand(child_blueprint).blocks if block.params} - set(blocks)
    assert len(new) > 3 and all(name.startswith("backbone.stage") for name in new)
    report = inherit(child, parent.state_dict(), Lineage(0, ("deeper",), blocks))
    assert not report.mismatched
    ours, theirs = (detector.eval().dense(images) for detector in (child, parent))
    for name in (f"head.{part}{level}" for part in ("classes", "boxes") for level in (3, 4, 5)):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)
