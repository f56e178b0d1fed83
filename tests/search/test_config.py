"""Configuration files: every wrong key is named, on one line."""

from pathlib import Path

import pytest
import yaml

from fastnas.errors import InputError
from fastnas.search.config import SPACES, check_config, load_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_the_configs_that_come_along_are_valid(file):
    space = file.stem.split("-")[0]
    settings = check_config(load_config(space, str(file)))
    assert settings.make_space(7).ancestor.classes == 7


@pytest.mark.parametrize("space", SPACES)
def test_every_space_has_a_demo_config(space):
    assert check_config(load_config(space, None)).space == space


def test_settings_change_keys():
    settings = check_config(load_config("spnas", None, ("train.lr=0.5", "rules.swap=[boundary]", "data.root='yes'")))
    assert settings.train.lr == 0.5 and settings.rules.swap == ("boundary",) and settings.data.root == "yes"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("train.lr=-1", "train.lr"),
        ("train.learning_rate=1", "train.learning_rate"),
        ("nonsense=1", "nonsense"),
        ("train=3", "train"),
        ("epochs.child=0", "epochs.child"),
        ("seed.x=1", "seed"),
        ("rules.p_expnd=1", "p_expnd"),
        ("candidates", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("train.lr=[", "YAML"),
    ],
)
def test_wrong_keys_are_named_on_one_line(change, says):
    with pytest.raises(InputError, match=says) as caught:
        check_config(load_config("spnas", None, (change,)))
    assert "\n" not in str(caught.value)


def test_broken_files_are_named(tmp_path):
    for content, says in (("a: [", "no YAML"), ("", "no keys"), ("space: smnas", "belongs to the space")):
        (tmp_path / "c.yaml").write_text(content)
        with pytest.raises(InputError, match=says):
            load_config("spnas", str(tmp_path / "c.yaml"))
    with pytest.raises(InputError, match="cannot read"):
        load_config("spnas", str(tmp_path / "missing.yaml"))
    (tmp_path / "ok.yaml").write_text(yaml.safe_dump({"ancestor": "64x64/basic:1-x/fpn:8/rpn:1/rcnn:8/classes:1"}))
    with pytest.raises(InputError, match="unknown character 'x'"):
        check_config(load_config("spnas", str(tmp_path / "ok.yaml"))).make_space(1)
