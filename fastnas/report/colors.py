"""Colors that carry AP, readable in light and in dark."""

from fastnas.report import units

RAMP = ((222, 235, 247), (158, 202, 225), (66, 146, 198), (8, 81, 156), (8, 48, 107))  # ColorBrewer Blues, single hue


def of_ap(ap: float | None, low: float, high: float) -> tuple[str, str] | None:
    """(fill, ink on it) of an AP on the scale from `low` to `high`; None for no AP."""
    if not units.known(ap):
        return None
    place = (ap - low) / (high - low) if high > low else 1.0
    place = min(max(place, 0.0), 1.0) * (len(RAMP) - 1)
    index = min(int(place), len(RAMP) - 2)
    rgb = [a + (b - a) * (place - index) for a, b in zip(RAMP[index], RAMP[index + 1], strict=True)]
    luminance = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    return "#" + "".join(f"{round(channel):02x}" for channel in rgb), "#10202f" if luminance > 140 else "#ffffff"


def scale(aps: list[float]) -> tuple[float, float]:
    """Ends of the color scale for these APs."""
    return (min(aps), max(aps)) if aps else (0.0, 1.0)
