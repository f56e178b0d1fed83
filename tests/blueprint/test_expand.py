"""Expansion into blocks and their counts, against numbers that others computed."""

import subprocess
import sys

import pytest
from hypothesis import given

from fastnas.blueprint import PRESETS, NoNeck, expand, parse
from fastnas.blueprint.code import positions
from tests.strategies import blueprints


def test_resnet50_faster_rcnn_counts_what_torchvision_has():
    # torchvision's fasterrcnn_resnet50_fpn with 91 outputs and trainable batch norm
    assert expand(PRESETS["fasterrcnn-r50-fpn"]).params == 41_808_406


def test_strides_follow_stages_and_widths_follow_digits():
    at = list(positions("12-11-2"))
    assert [(p.stage, p.index, p.stride, p.doublings) for p in at] == [
        (0, 0, 1, 0), (0, 1, 1, 1), (1, 0, 2, 1), (1, 1, 1, 1), (2, 0, 2, 2),
    ]  # fmt: skip


@given(blueprints())
def test_the_wiring_is_whole(blueprint):
    network = expand(blueprint)
    known = {"image"}
    for block, use in network.steps:
        assert set(use.inputs) <= known, "a step reads a value that no earlier step wrote"
        assert not set(use.outputs) & known, "a value is written once"
        known |= set(use.outputs)
        assert use.output_shapes == block.spec.outputs(use.input_shapes)
    assert known == set(network.shapes)
    assert sum(len(block.uses) for block in network.blocks) == len(network.steps) == sum(network.prices().values())
    assert len({block.name for block in network.blocks}) == len(network.blocks)
    # level i of the pyramid has stride 2^i, rounded up at odd sizes
    h, w = blueprint.input
    for level, value in pyramid_values(blueprint, network).items():
        assert network.shapes[value][2:] == (-(-h // 2**level), -(-w // 2**level))
        assert network.shapes[value][1] == blueprint.neck.channels


def pyramid_values(blueprint, network) -> dict[int, str]:
    """The neck's outputs, by level; none where there is no neck."""
    if isinstance(blueprint.neck, NoNeck):
        return {}
    levels = blueprint.neck.levels_over(blueprint.backbone.maps)
    if not hasattr(blueprint.neck, "repeats"):
        return {level: f"neck.p{level}" for level in levels}
    return {level: f"neck.layer{blueprint.neck.repeats}.out{level}" for level in levels}


def test_a_shared_block_counts_parameters_once_and_macs_per_use():
    network = expand(parse("64x64/basic:1-1/fpn:16/rpn:10/rcnn:32/classes:2"))
    head = next(block for block in network.blocks if block.name == "rpn.head")
    assert len(head.uses) == 3
    assert head.params == 16 * 16 * 9 + 16 + 16 * 15 + 15
    assert head.macs == (16 * 16 * 9 + 16 * 15) * (16 * 16 + 8 * 8 + 4 * 4)


def test_proposals_scale_the_head_only():
    few, many = (expand(parse(f"64x64/basic:1-1/fpn:16/rpn:{n}/rcnn:32/classes:2")) for n in (10, 20))
    box = 16 * 49 * 32 + 32 * 32 + 32 * 3 + 32 * 12
    assert many.macs - few.macs == 10 * box


@pytest.mark.parametrize("module", ["fastnas.blueprint", "fastnas.spaces", "fastnas.search.study", "fastnas.latency"])
def test_describing_and_pricing_load_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
