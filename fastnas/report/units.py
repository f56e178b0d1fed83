"""Numbers as people read them. Each takes None or NaN and shows a dash."""

import math

DASH = "–"


def known(value: float | None) -> bool:
    """True for a number that can be shown and compared."""
    return value is not None and math.isfinite(value)


def ap(value: float | None) -> str:
    return f"{value:.3f}" if known(value) else DASH


def ms(value: float | None) -> str:
    """Milliseconds with three significant digits, at most two decimals."""
    if not known(value):
        return DASH
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def params(value: float | None) -> str:
    return f"{value / 1e6:.2f} M" if known(value) else DASH


def macs(value: float | None) -> str:
    return f"{value / 1e9:.2f} G" if known(value) else DASH


def epochs(value: float | None) -> str:
    return f"{value:.1f}".removesuffix(".0") if known(value) else DASH


def percent(value: float | None) -> str:
    """A signed percentage, e.g. `+3.1 %`."""
    return f"{value:+.1f} %" if known(value) else DASH


def duration(seconds: float | None) -> str:
    """`45 s`, `7 min 30 s`, `2 h 5 min`."""
    if not known(seconds):
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(number: int, word: str, plural: str = "") -> str:
    """`1 candidate`, `3 candidates`."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def code(blueprint) -> str:
    """The backbone's code where it has one (`basic 11-21-21-21`, `basic 11-21 + 0-2` with copies), else the one-line form."""
    backbone = blueprint.backbone
    if not (text := getattr(backbone, "code", None)):
        return blueprint.text
    return f"{backbone.block} {text}{f' + {backbone.parallel}' if backbone.parallel else ''}"
