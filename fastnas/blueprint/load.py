"""What a person may write for BLUEPRINT on the command line: a preset, the one-line form, or a JSON or YAML file."""

import difflib
import json
from pathlib import Path

from fastnas.blueprint.blueprint import Blueprint
from fastnas.blueprint.code import BlueprintError
from fastnas.blueprint.presets import PRESETS
from fastnas.blueprint.text import parse
from fastnas.errors import InputError


def load(what: str) -> tuple[str, Blueprint]:
    """Returns (name, blueprint) of a preset name, a one-line form or a file. Raises InputError."""
    if what in PRESETS:
        return what, PRESETS[what]
    if what.endswith((".json", ".yaml", ".yml")):
        return Path(what).stem, _from_file(Path(what))
    if "/" in what or ":" in what:
        blueprint = parse(what)
        return blueprint.text.split("/")[1], blueprint
    near = difflib.get_close_matches(what, PRESETS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"presets: {', '.join(PRESETS)}"
    raise BlueprintError(f"{what!r} is no preset, no one-line blueprint and no .json or .yaml file ({hint})")


def _from_file(path: Path) -> Blueprint:
    try:
        content = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the blueprint {path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    try:
        if path.suffix == ".json":
            data = json.loads(content)
        else:
            import yaml

            data = yaml.safe_load(content)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no JSON (line {error.lineno}, column {error.colno}: {error.msg})") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    try:
        return Blueprint.from_dict(data)
    except BlueprintError as error:
        raise InputError(f"{path}: {error}") from None
