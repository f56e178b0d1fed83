"""Pareto dominance on tuples of numbers to be minimized."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """True if `a` is nowhere worse than `b` and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def pareto_front(items: Iterable[T], key: Callable[[T], tuple[float, ...]]) -> list[T]:
    """The items that no other item dominates, in the given order. Equal items are all kept."""
    items = list(items)
    keys = [key(item) for item in items]
    return [item for item, own in zip(items, keys, strict=True) if not any(dominates(other, own) for other in keys)]
