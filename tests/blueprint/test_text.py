"""The one-line form: round trips, and errors that point at the offending character."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastnas.blueprint import Blueprint, BlueprintError, parse
from fastnas.blueprint.parts import PARTS
from tests.strategies import blueprints

GOOD = "240x320/basic:11-21-21-21,base=32,stem=3x3/fpn:64/rpn:200,scale=4/rcnn:256/classes:3"


@given(blueprints())
def test_text_and_json_round_trip(blueprint):
    assert parse(blueprint.text) == blueprint
    assert parse(blueprint.text).text == blueprint.text
    assert Blueprint.from_dict(blueprint.to_dict()) == blueprint
    assert hash(parse(blueprint.text)) == hash(blueprint)


def test_defaults_are_left_out():
    assert parse(GOOD).text == GOOD
    assert parse(GOOD.replace(",base=32", ",base=64")).text == GOOD.replace(",base=32", "")


@pytest.mark.parametrize(
    ("old", "new", "character"),
    [
        ("11-21-21-21", "11-2x-21", "x"),
        ("11-21-21-21", "11--21", "-"),
        ("11-21-21-21", "-11", "-"),
        ("11-21-21-21", "11-", "-"),
        ("fpn:64", "fpn:6q", "q"),
        ("240x320", "240x32o", "2"),
        ("base=32", "base=33", "3"),
        ("base=32", "bass=32", "b"),
        ("stem=3x3", "stem=5x5", "5"),
        ("base=32", "parallel=0-0-2-x", "x"),
        ("base=32", "parallel=0-10-2-1", "0"),
        ("base=32", "parallel=0-0--1", "-"),
        ("base=32", "parallel=0-0-2", "2"),
        ("base=32", "parallel=0-0-2-1-1", "-"),
        ("base=32", "parallel=0-0-2-", "-"),
        ("base=32", "parallel=0-0-2-1,tied=ys", "y"),
        ("fpn:64", "fpn", "/"),
        ("rpn:200", "rnp:200", "r"),
        ("classes:3", "classes:0", None),
        ("/rcnn:256", "", None),
        ("/rcnn:256", "/rcnn:256/rcnn:256", "r"),
        ("scale=4", "scale=4,scale=4", "s"),
        ("fpn:64", "fpn:99999999999999", "9"),
    ],
)
def test_errors_point_at_the_character(old, new, character):
    text = GOOD.replace(old, new, 1)
    with pytest.raises(BlueprintError) as caught:
        parse(text)
    error = caught.value
    assert "\n" not in str(error)
    if character is None:
        assert error.position is None
    else:
        assert text[error.position] == character
        assert f"»{character}«" in str(error)
        assert f"at character {error.position + 1}" in str(error)


@pytest.mark.parametrize("options", ["parallel=0-0-0-0", "parallel=0-0-0-0,tied=no", "tied=no"])
def test_no_copies_is_the_serial_backbone(options):
    blueprint = parse(GOOD.replace("stem=3x3", f"stem=3x3,{options}"))
    assert blueprint == parse(GOOD) and hash(blueprint) == hash(parse(GOOD)) and blueprint.text == GOOD


ONE_STAGE = "64x96/efficientnet:b0,padding=symmetric/bifpn:32,method=sum/effdet:2,scale=5/classes:3"


def test_one_stage_detectors_have_no_rpn():
    blueprint = parse(ONE_STAGE)
    assert blueprint.rpn is None and blueprint.text == ONE_STAGE
    document = blueprint.to_dict()
    assert document["rpn"] is None
    del document["rpn"]
    assert Blueprint.from_dict(document) == blueprint


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("effdet:2", "rpn:10/effdet:2", "takes no proposals"),
        ("effdet:2,scale=5", "rcnn:16", "works on proposals"),
        ("bifpn:32", "bifpn:32,levels=2-7", "start at 2, but the backbone has levels 3 to 5"),
        ("bifpn:32", "bifpn:32,levels=3-3", "one level"),
        ("bifpn:32", "bifpn:32,levels=7-3", "»7«"),
        ("method=sum", "method=mean", "»m«ean"),
        ("b0", "b8", "»b«8"),
        ("b0", "1.10x1", "must be written 1.1x1"),
        ("b0", "1.1x11", "from 0.1 to 10"),
        ("padding=symmetric", "padding=valid", "»v«alid"),
        ("effdet:2", "effdet:0,channels=8", "repeats is 0"),
        ("scale=5", "scale=0", "»0«"),
    ],
)
def test_errors_of_one_stage_detectors_say_what_is_wrong(old, new, says):
    text = ONE_STAGE.replace(old, new, 1)
    with pytest.raises(BlueprintError) as caught:
        parse(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@given(st.text(max_size=60) | st.from_regex(r"\d+x\d+/[a-z0-9]+:[-12x]*[,=a-z0-9]*(/[a-z]+:\d*){0,4}", fullmatch=True))
def test_any_text_gives_a_blueprint_or_one_line(text):
    try:
        blueprint = parse(text)
    except BlueprintError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert parse(blueprint.text) == blueprint


def test_every_part_has_integer_or_text_fields():
    for part in PARTS.values():
        assert {field.type for field in dataclasses.fields(part.cls)} <= {int, str}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "code", "channels", "input"]), inner),
    max_leaves=6,
)


@given(blueprints(), st.data())
def test_any_json_gives_a_blueprint_or_one_line(blueprint, data):
    document = blueprint.to_dict()
    key = data.draw(st.sampled_from(list(document)))
    part = document[key]
    if isinstance(part, dict) and data.draw(st.booleans()):
        part[data.draw(st.sampled_from([*part, "other"]))] = data.draw(JSON)
    else:
        document[key] = data.draw(JSON)
    try:
        assert isinstance(Blueprint.from_dict(document).text, str)
    except BlueprintError as error:
        assert len(str(error).splitlines()) == 1
