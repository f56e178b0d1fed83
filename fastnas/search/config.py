"""The configuration of a search: a YAML file, checked field by field; unknown keys are errors that name their place."""

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field, ValidationError

import fastnas
from fastnas.blueprint import parse
from fastnas.blueprint.document import read_text, yaml_value
from fastnas.blueprint.show import one_line, show
from fastnas.errors import InputError
from fastnas.spaces import LEVELS, Space
from fastnas.train.config import Section, TrainConfig

SPACES = tuple(LEVELS)
MAX_SEED = 2**31 - 1
MAX_ERRORS = 10  # in one message
Rules = TypeVar("Rules")
S = TypeVar("S", bound=Section)


class Limits(Section):
    """Hard limits, checked before any training; a candidate over one of them is rejected."""

    latency_ms: float | None = Field(None, gt=0)
    params: int | None = Field(None, gt=0, le=10**18)
    macs: int | None = Field(None, gt=0, le=10**18)


class GeneratedData(Section):
    """The built-in data set of shapes, used where no data folder is given."""

    train: int = Field(256, ge=1, le=100_000)
    val: int = Field(96, ge=1, le=100_000)
    classes: int = Field(4, ge=1, le=8)
    seed: int = Field(0, ge=0, le=MAX_SEED)


# A path as a person writes it; the system takes no other.
FilePath = Annotated[str, Field(min_length=1, max_length=4000, pattern=r"^[^\x00]*$")]


class Data(Section):
    root: FilePath | None = None  # a COCO-format folder; none: the generated set
    generated: GeneratedData = GeneratedData()
    fraction: float = Field(1.0, gt=0, le=1)  # of the training images, during the search; the full training sees all


class Epochs(Section):
    """Fidelity: epochs of the ancestor, of every child (which starts from its parent's weights), and of the full training.

    A finalist with a shorter lineage is trained for longer in the end, so that all have seen equally many epochs.
    """

    ancestor: float = Field(6, gt=0, le=10_000)
    child: float = Field(4, gt=0, le=10_000)
    final: float = Field(12, ge=0, le=10_000)


class SearchConfig(Section, Generic[Rules]):
    """Of one level of a method; its rules are those of the level."""

    space: str
    level: str
    seed: int = Field(0, ge=0, le=MAX_SEED)
    candidates: int = Field(8, ge=1, le=1_000_000)  # trained ones, the ancestor among them
    ancestor: str  # a blueprint in one line; its `classes` are replaced by those of the data
    init: str | None = None  # weights file whose backbone is the ancestor's, which starts from it; none: fresh weights
    rules: Rules
    limits: Limits = Limits()
    data: Data = Data()
    train: TrainConfig = TrainConfig()
    epochs: Epochs = Epochs()
    finalists: int = Field(3, ge=1, le=1_000_000)  # descendants on the front that get the full training; the ancestor too
    workers: int = Field(1, ge=1, le=64)  # candidates that train side by side, each in a process with its share of the cores
    engine: str = "onnxruntime"
    device: str | None = None  # one that the table knows, see `fastnas.latency.recorded`; none: this machine's, or the only one
    table: FilePath | None = None  # latency table; none: the user's

    def make_space(self, classes: int) -> Space:
        """The space for a data set with this many classes. Raises InputError."""
        return LEVELS[self.space][self.level].space(parse(self.ancestor).replace(classes=classes), self.rules)


CONFIGS = {(space, name): SearchConfig[level.rules] for space, levels in LEVELS.items() for name, level in levels.items()}


def load_config(space: str, file: str | None, changes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Reads a config file (none: that of the level's demo) and applies KEY=VALUE changes with dotted keys. Raises InputError."""
    if space not in SPACES:
        raise InputError(f"unknown space {space!r} (known: {', '.join(SPACES)})")
    name = demo_name(space, changes) if file is None else file
    content = _builtin(name) if file is None else read_text(Path(file), "config")
    try:
        data = yaml_value(content)
    except ValueError as error:
        raise InputError(f"{name} is no YAML ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"{name} holds no keys")
    if data.setdefault("space", space) != space:
        raise InputError(f"{name} belongs to the space {show(data['space'])}, not {space!r}")
    for change in changes:
        apply_change(data, change)
    return data


def demo_name(space: str, changes: tuple[str, ...] = ()) -> str:
    """The config file of a method's first level, or of the one that the changes name."""
    _, *others = LEVELS[space]
    named = [change.removeprefix("level=") for change in changes if change.startswith("level=")]
    return f"{space}-{named[-1]}.yaml" if named and named[-1] in others else f"{space}-demo.yaml"


def apply_change(data: dict[str, Any], change: str) -> None:
    """Applies one `a.b=value` (value in YAML) to nested dicts."""
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise InputError(f"--set {show(change)}: write KEY=VALUE, e.g. --set train.lr=0.002")
    try:
        parsed = yaml_value(value)
    except ValueError as error:
        raise InputError(f"--set {show(change)}: no YAML value ({error})") from None
    *path, last = key.split(".")
    for part in path:
        if not isinstance(data.setdefault(part, {}), dict):
            raise InputError(f"--set {show(change)}: {show(part)} is not a section")
        data = data[part]
    data[last] = parsed


def check_config(data: dict[str, Any], name: str = "config") -> SearchConfig:
    """The checked configuration of a level (none named: the first). Raises InputError naming the wrong keys on one line."""
    levels = LEVELS.get(data.get("space"), {})
    filled = {"level": next(iter(levels), None), "rules": {}, **data}
    if filled["level"] not in levels:
        known = ", ".join(levels) or f"for the spaces {', '.join(SPACES)}"
        raise InputError(f"{name}: unknown level {show(filled['level'])} of the space {show(data.get('space'))} (known: {known})")
    return check_section(CONFIGS[filled["space"], filled["level"]], filled, name)


def check_section(kind: type[S], data: dict[str, Any], name: str) -> S:
    """`data` as a section of this kind. Raises InputError naming the wrong keys on one line."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        lines = [f"{_place(e['loc'])}: {one_line(e['msg'].removeprefix('Value error, '), 200)}" for e in found[:MAX_ERRORS]]
        more = f"; and {len(found) - MAX_ERRORS} more" if len(found) > MAX_ERRORS else ""
        raise InputError(f"{name}: {'; '.join(lines)}{more}") from None


def _place(keys: tuple[str | int, ...]) -> str:
    return ".".join(one_line(str(key)) for key in keys) or "top"


def _builtin(name: str) -> str:
    """Text of a config that comes with fastnas."""
    try:
        return (resources.files("fastnas.configs") / name).read_text()
    except ModuleNotFoundError:  # run from a checkout without installation
        return (Path(fastnas.__file__).parents[1] / "configs" / name).read_text()
