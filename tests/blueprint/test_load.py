"""What may be written for BLUEPRINT."""

import json

import pytest
import yaml

from fastnas.blueprint import PRESETS, BlueprintError, Fpn, SerialBackbone, load
from fastnas.blueprint.show import show
from fastnas.errors import InputError


def test_preset_text_and_files_give_the_same(tmp_path):
    name, blueprint = load("fasterrcnn-r18-fpn")
    assert name == "fasterrcnn-r18-fpn" and blueprint == PRESETS[name]
    assert load(blueprint.text)[1] == blueprint
    (tmp_path / "own.json").write_text(json.dumps(blueprint.to_dict()))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(blueprint.to_dict()))
    assert load(str(tmp_path / "own.json")) == ("own", blueprint)
    assert load(str(tmp_path / "own.yaml")) == ("own", blueprint)


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "line 1"), ("[]", "object"), ("{}", "'input'"), ('{"input": [1, 2], "x": 1}', "'x'"), ("\x00", "line 1")],
)
def test_broken_files_are_explained(tmp_path, content, says):
    file = tmp_path / "broken.json"
    file.write_text(content)
    with pytest.raises(InputError, match=says) as caught:
        load(str(file))
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_names_suggest():
    with pytest.raises(InputError, match="did you mean fasterrcnn-r50-fpn"):
        load("fasterrcnn-r50-fnp")
    with pytest.raises(InputError, match="missing.json"):
        load("missing.json")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)  # 9^12 elements


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("input: [64, 64]", BOMB + "input: *a11", "unknown key 'a0'"),
        ("input: [64, 64]", "input: &a0 [[1], [1], [1]]", "a list of 3"),
        ("input: [64, 64]", "input: [64, 2024-13-45]", "no YAML"),
        ("input: [64, 64]", f"input: [64, {'9' * 5000}]", "no YAML"),
        ("input: [64, 64]", f"input: [64, 0x{'f' * 5000}]", "a number of about 6021 digits"),
        ("input: [64, 64]", f"input: {'[' * 5000}", "nested too deeply"),
        ("input: [64, 64]", "input: !!int ''", "no YAML"),
        ("input: [64, 64]", "input: !!bool x", "no YAML"),
        ("input: [64, 64]", "input: !!timestamp x", "no YAML"),
        ("input: [64, 64]", "input: !%1b[31m x", "no YAML"),
        ("input: [64, 64]", "b: &b {c: 1}\ninput: {<<: [*b, *b]}", "merge keys"),
        ("input: [64, 64]", '"\\e[31mred": 1', r"\\x1b\[31mred"),
        ("input: [64, 64]", f"input: {'x' * 1_000_000}", "larger than 1 MB"),
        ("classes: 1", "classes: {a: [1, 2]}", "not an object"),
        ("classes: 1", f"classes: {'x' * 999}", r"xxx\.\.\."),
        ("kind: fpn", "kind: [fpn]", "unknown neck kind a list of 1"),
    ],
)
def test_hostile_files_are_one_short_line(tmp_path, old, new, says):
    content = """input: [64, 64]
backbone: {kind: basic, code: '1'}
neck: {kind: fpn, channels: 16}
rpn: {kind: rpn, proposals: 10}
head: {kind: rcnn, hidden: 16}
classes: 1
"""
    file = tmp_path / "b.yaml"
    file.write_text(content)
    assert load(str(file))[1].classes == 1
    assert old in content
    file.write_text(content.replace(old, new))
    with pytest.raises(InputError, match=says) as caught:
        load(str(file))
    message = str(caught.value)
    assert str(file) in message and message.isprintable() and len(message) < 250 + len(str(file))


@pytest.mark.parametrize(("content", "says"), [("[" * 100_000, "nested too deeply"), (f'{{"input": {"9" * 5000}}}', "no JSON")])
def test_json_that_python_refuses_is_explained(tmp_path, content, says):
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(InputError, match=says) as caught:
        load(str(tmp_path / "b.json"))
    assert "b.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_value_is_shown_without_walking_it():
    bomb = []
    for _ in range(60):
        bomb = [bomb, bomb]  # 2^60 elements
    for value, shown in ((bomb, "a list of 2"), ({"a": bomb}, "an object"), (None, "None"), (1.5, "1.5"), (b"", "a bytes")):
        assert show(value) == shown
    assert show("a\x1b\n\ud800") == r"'a\x1b\n\ud800'" and len(show("\x1b" * 10**6)) <= 62
    with pytest.raises(BlueprintError, match="not a list of 2"):
        Fpn(bomb)
    with pytest.raises(BlueprintError, match="is a list of 2, it must be one of"):
        SerialBackbone(bomb, "1")
