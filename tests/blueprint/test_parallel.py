"""The parallel form of the serial backbone: its wiring is the published one, its counts follow from uses and owners."""

import dataclasses

import pytest
from hypothesis import given

from fastnas.blueprint import SerialBackbone, expand, parse
from tests.strategies import serial_backbones

TEXT = "64x64/basic:1-2-1,base=8,parallel={},tied={}/fpn:8/rpn:10/rcnn:8/classes:2"


def passes(parallel: str, tied: str = "yes") -> list[tuple[str, ...]]:
    """(output, inputs) of every step in the backbone's stages, in short."""
    network = expand(parse(TEXT.format(parallel, tied)))
    short = [use.outputs[:1] + use.inputs for block, use in network.steps if block.name.startswith("backbone.stage")]
    return [tuple(value.removeprefix("backbone.").replace(".block1", "") for value in values) for values in short]


def test_copies_feed_back_from_the_outside_in():
    assert passes("0-2-0") == [
        ("stage1", "stem"),
        ("stage2.copy2", "stage1"),
        ("stage2.connector.sum2", "stage1", "stage2.copy2"),
        ("stage2.copy1", "stage2.connector.sum2"),
        ("stage2.connector.sum1", "stage1", "stage2.copy1"),
        ("stage2", "stage2.connector.sum1"),
        ("stage3", "stage2"),
    ]


def test_copies_go_on_from_the_same_copy_of_the_stage_before_or_from_its_outermost():
    inputs = {output: source for output, source, *_ in passes("1-3-2")}
    assert inputs["stage1.copy1"] == "stem"
    assert inputs["stage2.copy3"] == "stage1.copy1", "stage 1 has no third copy"
    assert inputs["stage2.connector.sum3"] == "stage1.copy1" and inputs["stage2.connector.sum2"] == "stage1.copy1"
    assert inputs["stage2.connector.sum1"] == "stage1", "the backbone's own stage goes on from its own map"
    assert inputs["stage3.copy2"] == "stage2.copy2" and inputs["stage3.connector.sum2"] == "stage2.copy1"


def test_only_copies_that_the_next_stage_has_are_handed_on():
    inputs = {output: source for output, source, *_ in passes("3-1-1")}
    assert inputs["stage2.copy1"] == "stage1.copy1"
    assert {output: source for output, source, *_ in passes("3-0-1")}["stage3.copy1"] == "stage2"


def test_copies_with_weights_of_their_own():
    names = [block.name for block in expand(parse(TEXT.format("0-2-0", "no"))).blocks]
    assert [name for name in names if ".stage2." in name] == [
        "backbone.stage2.copy2.block1",
        "backbone.stage2.copy2.connector",
        "backbone.stage2.copy1.block1",
        "backbone.stage2.copy1.connector",
        "backbone.stage2.block1",
    ]


@given(serial_backbones())
def test_tying_changes_the_parameters_alone(backbone):
    blueprint = parse(TEXT.format("0-0-0", "yes")).replace(backbone=backbone)
    tied, own, serial = (
        expand(blueprint.replace(backbone=dataclasses.replace(backbone, **change)))
        for change in ({"tied": "yes"}, {"tied": "no"}, {"parallel": ""})
    )
    assert tied.macs == own.macs and sorted(tied.prices().items(), key=repr) == sorted(own.prices().items(), key=repr)
    copies = sum(map(int, backbone.parallel.replace("-", "")))
    assert (tied.params > serial.params) == (own.macs > serial.macs) == (copies > 0)
    assert own.params > tied.params or copies == 0
    connectors = [block for block in tied.blocks if block.name.endswith(".connector")]
    assert sum(len(block.uses) for block in connectors) == copies


@pytest.mark.parametrize(("parallel", "millions"), [("", 53.4), ("1-0-2-1-2", 60.3)])
def test_parameters_of_the_published_backbone(parallel, millions):
    """SPNet(XB), without and with the connectors of its copies, whose blocks are those of the stages."""
    code = "1111-21111-2111111111111111111111111-211-1"
    backbone = SerialBackbone("resnext32x4d", code, stem="3x3", parallel=parallel)
    network = expand(parse(TEXT.format("0-0-0", "yes")).replace(backbone=backbone))
    blocks = [block for block in network.blocks if block.name.startswith("backbone.")]
    assert round(sum(block.params for block in blocks) / 1e6, 1) == millions
