"""Reading small JSON and YAML files that a person or a stranger wrote: whatever is in them, the error is one line."""

import json
from pathlib import Path
from typing import Any

from fastnas.blueprint.show import one_line
from fastnas.errors import InputError

MAX_BYTES = 1_000_000
# PyYAML's constructors fail with any of these on values such as `2024-13-45`, `!!int ""`, `!!bool x` and `!!timestamp x`.
WRONG_VALUE = (ValueError, RecursionError, LookupError, AttributeError, TypeError, ArithmeticError)


def read_text(path: Path, what: str) -> str:
    """The text of a file of at most `MAX_BYTES`; `what` says its role in messages. Raises InputError."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InputError(f"the {what} {path} is larger than {MAX_BYTES // 1_000_000} MB: name the right file")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the {what} {path}: {getattr(error, 'strerror', None) or 'not text'}") from None


def json_value(text: str) -> Any:
    """The value of a JSON text. Raises ValueError with a reason on one line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except WRONG_VALUE as error:
        raise ValueError(_reason(error)) from None


def yaml_value(text: str) -> Any:
    """The value of a YAML text; merge keys are refused. Raises ValueError with a reason on one line."""
    import yaml  # only where it is needed: it takes longer than the rest of `fastnas describe`

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node):
            # Merging copies: a few lines of `<<: [*a, *a]` would fill the memory.
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not read", key.start_mark)
            super().flatten_mapping(node)

    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(where + one_line(error.problem or error.context or "cannot be read", 120)) from None
    except yaml.YAMLError as error:
        raise ValueError(one_line(" ".join(str(error).split()), 120)) from None
    except WRONG_VALUE as error:
        raise ValueError(_reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"a value cannot be read: {one_line(str(error), 100)}"
