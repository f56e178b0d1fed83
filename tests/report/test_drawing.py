import re

from fastnas.blueprint import Lineage, parse
from fastnas.report.drawing import EARLIER, NEW, OLD, RUN, backbone_svg, block_ages
from fastnas.report.facts import gather
from fastnas.report.units import code
from tests.report.studies import candidate, finish

TEXT = "240x320/basic:{},base=32,stem=3x3,norm=gn/fpn:64/rpn:200,scale=4/rcnn:256/classes:3"
STEM = {"backbone.stem": "backbone.stem"}


def block(stage, index):
    return f"backbone.stage{stage}.block{index}"


def add(study, backbone, parent=None, blocks=None):
    record = study.add(candidate(parse(TEXT.format(backbone)), Lineage(parent, ("expand",) if blocks else (), blocks or {})))
    finish(study, record.id, 0.3)
    return record.id


def ages(study, id):
    records = {record.id: record for record in study.records()}
    return {name: age for name, age in block_ages(records[id], records).items() if name.startswith("backbone")}


def test_new_earlier_and_old_blocks_are_told_apart(study):
    ancestor = add(study, "1-2")
    child = add(study, "11-2", ancestor, {**STEM, block(1, 1): block(1, 1), block(2, 1): block(2, 1)})
    kept = {**STEM, block(1, 1): block(1, 1), block(1, 2): block(1, 2), block(2, 1): block(2, 1)}
    grandchild = add(study, "11-21", child, kept)
    assert set(ages(study, ancestor).values()) == {OLD}
    assert ages(study, child)[block(1, 2)] == NEW
    assert ages(study, grandchild) == {
        "backbone.stem": OLD,
        block(1, 1): OLD,
        block(1, 2): EARLIER,
        block(2, 1): OLD,
        block(2, 2): NEW,
    }


def test_a_box_a_block_with_its_age(study):
    ancestor = add(study, "1-2")
    child = add(study, "11-2", ancestor, {**STEM, block(1, 1): block(1, 1), block(2, 1): block(2, 1)})
    facts = gather(study)
    svg = backbone_svg(facts.by_id[child], facts)
    assert re.findall(r'class="block (\w+)"', svg) == ["old", "old", "new", "old"]
    heights = [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]
    assert heights[0] == heights[1] == heights[2] > heights[3]


def test_copies_are_told_and_their_connector_is_new(study):
    ancestor = add(study, "1-2")
    child = add(study, "1-2,parallel=0-2", ancestor, {**STEM, block(1, 1): block(1, 1), block(2, 1): block(2, 1)})
    facts = gather(study)
    assert [code(facts.by_id[id].blueprint) for id in (ancestor, child)] == ["basic 1-2", "basic 1-2 + 0-2"]
    assert re.findall(r'class="block (\w+)"', backbone_svg(facts.by_id[child], facts)).count("new") == 1


def test_long_runs_of_equal_blocks_become_one_box(study):
    add(study, "1" * (RUN + 1) + "-2")
    facts = gather(study)
    svg = backbone_svg(facts.records[0], facts)
    assert svg.count("<rect") == 3  # stem, the run, stage 2
    assert f"×{RUN + 1}" in svg


def test_a_parent_that_is_gone(study):
    id = add(study, "11-2", parent=77, blocks={**STEM, block(1, 1): block(1, 1)})
    assert ages(study, id)[block(1, 2)] == NEW
