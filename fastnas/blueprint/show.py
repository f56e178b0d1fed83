"""Values from a file in an error message: one line, short, and never a walk through the value (aliases make it endless)."""

from typing import Any

LIMIT = 60  # characters


def one_line(text: str, limit: int = LIMIT) -> str:
    """`text` with everything that a terminal cannot print escaped, cut to `limit` characters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def show(value: Any) -> str:
    """What a person needs to find `value`: short values as they are, containers by their kind, huge numbers by their length."""
    if isinstance(value, str):
        return f"'{one_line(value)}'"
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        digits = value.bit_length() * 30103 // 100000 + 1  # log10(2); str() refuses thousands of digits
        return str(value) if digits <= 20 else f"a number of about {digits} digits"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
