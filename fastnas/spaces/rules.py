"""What the rules of all levels share: dataclasses that a search reads from its configuration, where unknown keys are errors."""

from fastnas.errors import InputError

STRICT = {"extra": "forbid", "allow_inf_nan": False}  # `__pydantic_config__` of every rules class
PROBABILITY = (0, 1)
OPERATIONS = (1, 20)


def check(rules, **bounds: tuple[float, float]) -> None:
    """Raises InputError for the first field that is not within (lowest, highest)."""
    for name, (low, high) in bounds.items():
        value = getattr(rules, name)
        if not low <= value <= high:
            raise InputError(f"rules.{name} is {value:g}, it must be from {low} to {high}")


def check_choices(rules, *names: str) -> None:
    """Raises InputError for the first field that names nothing, or something twice."""
    for name in names:
        choices = getattr(rules, name)
        if not choices or len(set(choices)) < len(choices):
            raise InputError(f"rules.{name} must name at least one choice and none of them twice")
