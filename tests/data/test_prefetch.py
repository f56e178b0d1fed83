"""The background thread: order, errors, shutting down."""

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from fastnas.data.prefetch import prefetch


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_items_in_order_and_the_thread_is_gone():
    assert list(prefetch(range(50))) == list(range(50))
    assert list(prefetch([])) == []
    assert threads() == 0


def test_works_ahead_but_not_further_than_asked():
    made = []

    def source() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    ahead = prefetch(source(), depth=2)
    assert made == []  # nothing starts before the first item is wanted
    assert next(ahead) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]  # one taken, two waiting, one that does not fit yet
    ahead.close()
    assert threads() == 0 and len(made) == 4


def test_errors_arrive_after_the_items_before_them():
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise RuntimeError("broken")

    got = []
    with pytest.raises(RuntimeError, match="broken"):
        for item in prefetch(source()):
            got.append(item)
    assert got == [1, 2] and threads() == 0


def test_leaving_early_closes_the_source():
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    with pytest.raises(ZeroDivisionError):
        for item in prefetch(source()):
            1 / (item - 3)  # noqa: B018
    for item in prefetch(source()):
        if item == 5:
            break
    del item
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == 0 and closed == [True, True]
