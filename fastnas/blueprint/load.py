"""What a person may write for BLUEPRINT on the command line: a preset, the one-line form, or a JSON or YAML file."""

import difflib
from pathlib import Path

from fastnas.blueprint.blueprint import Blueprint
from fastnas.blueprint.code import BlueprintError
from fastnas.blueprint.document import json_value, read_text, yaml_value
from fastnas.blueprint.presets import PRESETS
from fastnas.blueprint.show import show
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
    raise BlueprintError(f"{show(what)} is no preset, no one-line blueprint and no .json or .yaml file ({hint})")


def _from_file(path: Path) -> Blueprint:
    content = read_text(path, "blueprint")
    read, form = (json_value, "JSON") if path.suffix == ".json" else (yaml_value, "YAML")
    try:
        data = read(content)
    except ValueError as error:
        raise InputError(f"{path} is no {form} ({error})") from None
    try:
        return Blueprint.from_dict(data)
    except BlueprintError as error:
        raise InputError(f"{path}: {error}") from None
