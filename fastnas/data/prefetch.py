"""Runs an iterator in a background thread, a few items ahead of its consumer."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_END = object()


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


def prefetch(source: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yields the items of `source`, up to `depth` of them computed ahead.

    An error in `source` is raised at the place of the missing item. The thread has ended when this iterator is
    exhausted, closed or dropped.
    """
    ready: queue.Queue[object] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        items = iter(source)
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    break
            put(_END)
        except BaseException as error:  # carried to the consumer, whatever it is
            put(_Failure(error))
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        try:
            while True:
                ready.get_nowait()  # lets a blocked put return at once
        except queue.Empty:
            pass
        thread.join()
