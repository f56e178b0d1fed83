"""The configuration of a search: a YAML file, checked field by field; unknown keys are errors that name their place."""

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import ConfigDict, Field, ValidationError

import fastnas
from fastnas.blueprint import parse
from fastnas.errors import InputError
from fastnas.spaces import SerialRules, SerialSpace
from fastnas.train.config import Section, TrainConfig

SPACES = ("spnas",)
Rules = pydantic.dataclasses.dataclass(SerialRules, config=ConfigDict(extra="forbid"), frozen=True)


class Limits(Section):
    """Hard limits, checked before any training; a candidate over one of them is rejected."""

    latency_ms: float | None = Field(None, gt=0)
    params: int | None = Field(None, gt=0)
    macs: int | None = Field(None, gt=0)


class GeneratedData(Section):
    """The built-in data set of shapes, used where no data folder is given."""

    train: int = Field(256, ge=1)
    val: int = Field(96, ge=1)
    classes: int = Field(4, ge=1)
    seed: int = 0


class Data(Section):
    root: str | None = None  # a COCO-format folder; none: the generated set
    generated: GeneratedData = GeneratedData()
    fraction: float = Field(1.0, gt=0, le=1)  # of the training images, during the search; the full training sees all


class Epochs(Section):
    """Fidelity: epochs of the ancestor, of every child (which starts from its parent's weights), and of the full training.

    A finalist with a shorter lineage is trained for longer in the end, so that all have seen equally many epochs.
    """

    ancestor: float = Field(6, gt=0)
    child: float = Field(4, gt=0)
    final: float = Field(12, ge=0)


class SearchConfig(Section):
    space: Literal["spnas"]
    seed: int = Field(0, ge=0)
    candidates: int = Field(8, ge=1)  # trained ones, the ancestor among them
    ancestor: str  # a blueprint in one line; its `classes` are replaced by those of the data
    rules: Rules = Rules()
    limits: Limits = Limits()
    data: Data = Data()
    train: TrainConfig = TrainConfig()
    epochs: Epochs = Epochs()
    finalists: int = Field(3, ge=1)  # members of the front that get the full training; the ancestor gets it too, for comparison
    engine: str = "onnxruntime"
    table: str | None = None  # latency table; none: the user's

    def make_space(self, classes: int) -> SerialSpace:
        """The space for a data set with this many classes. Raises InputError."""
        return SerialSpace(parse(self.ancestor).replace(classes=classes), self.rules)


def load_config(space: str, file: str | None, changes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Reads a config file (none: the method's demo config) and applies KEY=VALUE changes with dotted keys. Raises InputError."""
    if space not in SPACES:
        raise InputError(f"unknown space {space!r} (known: {', '.join(SPACES)})")
    if file is None:
        name, content = f"{space}-demo.yaml", _builtin(f"{space}-demo.yaml")
    else:
        name = file
        try:
            content = Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise InputError(f"cannot read the config {file}: {reason}") from None
    try:
        data = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise InputError(f"{name} is no YAML: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{name} holds no keys")
    if data.setdefault("space", space) != space:
        raise InputError(f"{name} belongs to the space {data['space']!r}, not {space!r}")
    for change in changes:
        apply_change(data, change)
    return data


def apply_change(data: dict[str, Any], change: str) -> None:
    """Applies one `a.b=value` (value in YAML) to nested dicts."""
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise InputError(f"--set {change!r}: write KEY=VALUE, e.g. --set train.lr=0.002")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {change!r}: {value!r} is no YAML value") from None
    *path, last = key.split(".")
    for part in path:
        if not isinstance(data.setdefault(part, {}), dict):
            raise InputError(f"--set {change!r}: {part!r} is not a section")
        data = data[part]
    data[last] = parsed


def check_config(data: dict[str, Any], name: str = "config") -> SearchConfig:
    """The checked configuration. Raises InputError naming every wrong key on one line."""
    try:
        return SearchConfig.model_validate(data)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'top'}: {e['msg']}" for e in error.errors()]
        raise InputError(f"{name}: {'; '.join(lines)}") from None


def _builtin(name: str) -> str:
    """Text of a config that comes with fastnas."""
    try:
        return (resources.files("fastnas.configs") / name).read_text()
    except ModuleNotFoundError:  # run from a checkout without installation
        return (Path(fastnas.__file__).parents[1] / "configs" / name).read_text()
