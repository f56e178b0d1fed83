"""Pareto dominance and hypervolume on tuples of numbers to be minimized."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
Point = tuple[float, float]


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """True if `a` is nowhere worse than `b` and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def pareto_front(items: Iterable[T], key: Callable[[T], tuple[float, ...]]) -> list[T]:
    """The items that no other item dominates, in the given order. Equal items are all kept."""
    items = list(items)
    keys = [key(item) for item in items]
    return [item for item, own in zip(items, keys, strict=True) if not any(dominates(other, own) for other in keys)]


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """Area that `points` dominate below and left of `reference`."""
    area, floor = 0.0, reference[1]
    for x, y in sorted(points):
        if x < reference[0] and y < floor:
            area += (reference[0] - x) * (floor - y)
            floor = y
    return area


def spread(items: list[T], count: int, key: Callable[[T], Point]) -> list[T]:
    """At most `count` items, chosen one by one for the largest gain in hypervolume; the reference lies 10 % beyond the worst."""
    if len(items) <= count:
        return list(items)
    keys = [key(item) for item in items]
    worst, best = [max(axis) for axis in zip(*keys, strict=True)], [min(axis) for axis in zip(*keys, strict=True)]
    reference = tuple(w + 0.1 * (w - b) + 1e-9 for w, b in zip(worst, best, strict=True))
    chosen: list[int] = []
    while len(chosen) < count:
        rest = [index for index in range(len(items)) if index not in chosen]
        gain = [hypervolume([keys[k] for k in [*chosen, index]], reference) for index in rest]
        chosen.append(rest[max(range(len(rest)), key=gain.__getitem__)])
    return [items[index] for index in sorted(chosen)]
