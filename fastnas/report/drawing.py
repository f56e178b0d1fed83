"""Drawings of backbones: a box a block, its height after the resolution and its width after the channels, new blocks in color."""

import math
from dataclasses import dataclass

from fastnas.blueprint import Block, Blueprint, expand
from fastnas.report.facts import Facts
from fastnas.report.html import Html, join, tag
from fastnas.search.record import Record

OLD, EARLIER, NEW = "old", "earlier", "new"
MEANING = {OLD: "from the ancestor", EARLIER: "inserted by a forebear", NEW: "inserted in this candidate"}
RUN = 6  # more equal blocks than this in a row are drawn as one box with a number
TOP, GAP, STAGE_GAP, TALLEST = 18, 2, 20, 104


@dataclass(frozen=True)
class Box:
    """One block, or `count` equal ones in a row."""

    block: Block
    channels: int
    side: int  # height of the feature map in pixels
    age: str
    count: int = 1


def block_ages(record: Record, by_id: dict[int, Record]) -> dict[str, str]:
    """For every block: `new` in this candidate, `earlier` inserted on the way from the ancestor, or `old` as the ancestor's."""
    names = {block.name: block.name for block in expand(record.blueprint).blocks}
    ages = dict.fromkeys(names, OLD)
    age, seen = NEW, set()
    while record.lineage.parent is not None and record.id not in seen:
        seen.add(record.id)
        for name in [name for name, own in names.items() if own not in record.lineage.blocks]:
            ages[name] = age
            del names[name]
        names = {name: record.lineage.blocks[own] for name, own in names.items()}
        if record.lineage.parent not in by_id:
            break
        record, age = by_id[record.lineage.parent], EARLIER
    return ages


def backbone_svg(record: Record, facts: Facts) -> Html | None:
    """The drawing of one candidate, None for a blueprint whose backbone has no stages of blocks."""
    stages = _stages(record.blueprint, block_ages(record, facts.by_id))
    if not stages:
        return None
    tallest = max(box.side for stage in stages for box in stage)
    drawn, x = [], 8.0
    for number, stage in enumerate(stages):
        start = x
        for box in stage:
            drawn.append(_box(box, x, tallest))
            x += _width(box.channels) + GAP
        drawn.append(_stage_label(stage, number, start, x - GAP))
        x = max(x - GAP, start + 46) + STAGE_GAP
    width, height = x - STAGE_GAP + 8, TOP + TALLEST + 46
    axis = TOP + TALLEST / 2
    drawn.insert(0, tag("path", d=f"M2 {axis}H{width - 2:.0f}", class_="flow"))
    view = f"0 0 {width:.0f} {height}"
    label = f"Backbone of candidate {record.id}"
    return tag("svg", drawn, class_="backbone", width=round(width), height=height, viewBox=view, role="img", aria_label=label)


def _stages(blueprint: Blueprint, ages: dict[str, str]) -> list[list[Box]]:
    """The stem, then the stages, each with its boxes in order of execution."""
    stages: dict[str, list[Box]] = {}
    for block in expand(blueprint).blocks:
        part, _, rest = block.name.partition(".")
        if part != "backbone" or not block.uses:
            continue
        _, channels, side, _ = block.uses[0].output_shapes[0]
        box = Box(block, channels, side, ages[block.name])
        boxes = stages.setdefault(rest.partition(".")[0], [])
        boxes.append(box)
    return [_folded(boxes) for boxes in stages.values()]


def _folded(boxes: list[Box]) -> list[Box]:
    """Runs of more than `RUN` blocks that look the same become one box."""
    result: list[list[Box]] = []
    for box in boxes:
        look = (box.channels, box.side, box.age)
        if result and (result[-1][0].channels, result[-1][0].side, result[-1][0].age) == look:
            result[-1].append(box)
        else:
            result.append([box])
    return [
        box
        for run in result
        for box in ([Box(run[0].block, run[0].channels, run[0].side, run[0].age, len(run))] if len(run) > RUN else run)
    ]


def _width(channels: int) -> float:
    """Wider with more channels, but a 2048-channel block is not 64 times as wide as one of 32."""
    return max(6.0, 1.25 * math.sqrt(channels))


def _box(box: Box, x: float, tallest: int) -> Html:
    width, height = _width(box.channels), max(8.0, TALLEST * math.sqrt(box.side / tallest))
    y = TOP + (TALLEST - height) / 2
    name = f"{box.block.name} and {box.count - 1} equal ones" if box.count > 1 else box.block.name
    counts = f"{box.block.params:,} parameters, {box.block.macs / 1e6:.1f} MMACs"
    title = f"{name}: {box.channels} channels, height {box.side}, {counts}, {MEANING[box.age]}"
    shapes = [tag("title", title), tag("rect", x=x, y=y, width=width, height=height, rx=2)]
    if box.count > 1:
        shapes.append(tag("text", f"×{box.count}", x=x + width / 2, y=y - 4, class_="times"))
    return tag("g", shapes, class_=f"block {box.age}")


def _stage_label(stage: list[Box], number: int, start: float, end: float) -> Html:
    middle, y = max((start + end) / 2, start + 20), TOP + TALLEST + 16
    name = "stem" if number == 0 and stage[0].block.name == "backbone.stem" else f"stage {number}"
    channels = sorted({box.channels for box in stage})
    span = f"{channels[0]}" if len(channels) == 1 else f"{channels[0]}–{channels[-1]}"
    return join(
        tag("text", name, x=middle, y=y, class_="stage"),
        tag("text", f"{span} ch", x=middle, y=y + 14, class_="detail"),
    )


def detector_parts(record: Record) -> str:
    """The input and the parts behind the backbone in one line, from the canonical text."""
    parts = record.blueprint.text.split("/")
    return " · ".join([parts[0].replace("x", " × "), *parts[2:]])
