"""Configuration files: every wrong key is named, on one line."""

from pathlib import Path

import pytest
import yaml

from fastnas.errors import InputError
from fastnas.search.config import SPACES, check_config, load_config
from fastnas.spaces import LEVELS

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


@pytest.mark.parametrize(
    "change",
    [
        "seed=2147483648", "candidates=1000001", "finalists=1000001",
        "epochs.ancestor=.inf", "epochs.child=10001", "epochs.final=.nan",
        "rules.operations=21", "rules.operations=0", "rules.max_step=101", "rules.max_step=-1", "rules.p_swap=.nan",
        "rules.p_expand=-0.1", "rules.max_blocks=401", "rules.min_blocks=0", "rules.max_stages=8", "rules.min_stages=0",
        "rules.min_blocks=13", "rules.min_stages=6", "rules.p_swap=0.9", "rules.swap=[]", "rules.swap=[both]",
        "limits.latency_ms=.inf", "limits.params=1e300", "data.fraction=.nan",
        "data.generated.train=100001", "data.generated.val=100001", "data.generated.classes=9",
        "data.generated.seed=-1", "data.generated.seed=2147483648",
        "train.batch_size=4097", "train.lr=101", "train.lr=.inf", "train.weight_decay=.inf", "train.clip=.nan",
        "train.sampling.proposals=10001",
        "train.augment.zoom=[1.2, 0.8]", "train.augment.zoom=[0.05, 1]", "train.augment.zoom=[1, 11]",
        "train.augment.zoom=[.nan, 1]", "train.augment.zoom=[1]",
        "rules.prior=[]", "rules.prior=[1]", "rules.prior=[0.5, 0.6]", "rules.prior=[1.5, -0.5]", "rules.prior=[.nan, 1]",
        "rules.prior=[0.5, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05]", "rules.p_draw=1.1",
    ],
)  # fmt: skip
def test_what_would_fail_late_is_refused_early(change):
    key = change.partition("=")[0]
    level = "parallel" if key in ("rules.prior", "rules.p_draw") else "serial"
    with pytest.raises(InputError) as caught:
        check_config(load_config("spnas", None, (f"level={level}", change)))
    message = str(caught.value)
    section, _, last = key.rpartition(".")
    assert key in message or (f"{section}:" in message and last in message)
    assert message.isprintable()


@pytest.mark.parametrize(("space", "level"), [(space, level) for space, levels in LEVELS.items() for level in levels])
def test_every_level_has_rules_of_its_own(space, level):
    settings = check_config(load_config(space, None, (f"level={level}",)))
    assert type(settings.rules) is LEVELS[space][level].rules and settings.make_space(3).name == space
    assert check_config(settings.model_dump(mode="json")) == settings, "a worker reads it back"
    wrong = {"rules.p_cross=2": "p_cross is 2", "rules.nonsense=1": "rules.nonsense", "rules.operations=x": "rules.operations"}
    for change, says in wrong.items():
        with pytest.raises(InputError, match=says) as caught:
            check_config(load_config(space, None, (f"level={level}", change)))
        assert str(caught.value).isprintable()


def test_unknown_levels_are_named():
    with pytest.raises(InputError, match="unknown level 'modulr' of the space 'smnas' \\(known: structural, modular\\)"):
        check_config(load_config("smnas", None, ("level=modulr",)))
    with pytest.raises(InputError, match="unknown space 'detr'"):
        load_config("detr", None)


@pytest.mark.parametrize("value", ["2024-13-45", "9" * 5000, "[" * 5000, "!!int ''", "{<<: {a: 1}}"])
def test_values_that_yaml_refuses_are_explained(tmp_path, value):
    (tmp_path / "c.yaml").write_text(f"seed: {value}\n")
    for file, changes, says in ((str(tmp_path / "c.yaml"), (), "c.yaml"), (None, (f"seed={value}",), "--set")):
        with pytest.raises(InputError, match=says) as caught:
            load_config("spnas", file, changes)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_hostile_keys_and_sizes_stay_one_short_line(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text('"\\e[31mred": 1\n' + "".join(f"key{n}: 1\n" for n in range(500)))
    with pytest.raises(InputError, match="more$") as caught:
        check_config(load_config("spnas", str(file)))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    file.write_text("a" * 1_000_001)
    with pytest.raises(InputError, match="larger than 1 MB"):
        load_config("spnas", str(file))
