"""HTML and SVG elements that escape whatever they are given: text from a study may come from anywhere."""

import html
import json
from typing import Any


class Html(str):
    """Text that is markup already. Everything else is escaped by `tag`."""


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """One element. Children that are not `Html` are escaped, None is left out; `class_` becomes `class`, `a_b` becomes `a-b`."""
    named = {key.strip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    written = "".join(f' {key}="{html.escape(_number(value))}"' for key, value in named.items())
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Any) -> Html:
    """Children one after the other, escaped like those of `tag`. Lists are flattened."""
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, (list, tuple)):
            parts.append(join(*child))
        elif child is not None:
            parts.append(html.escape(_number(child)))
    return Html("".join(parts))


def script_json(value: Any) -> Html:
    """JSON that may stand inside a <script> element: it holds neither `<` nor a line separator that ends a statement."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(text)


def _number(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
