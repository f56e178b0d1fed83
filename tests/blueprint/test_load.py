"""What may be written for BLUEPRINT."""

import json

import pytest
import yaml

from fastnas.blueprint import PRESETS, load
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
