"""Memory, streams, events and graphs of one GPU, without torch: through pycuda on the primary context, which torch shares.

pycuda has no graphs: those six functions of the driver are called directly.
"""

import atexit
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pycuda.driver as cuda

from fastnas.errors import FastnasError

Error = cuda.Error  # what all of this raises besides FastnasError, e.g. when memory is out
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile does not disturb the capture


class Device:
    """Raises FastnasError where there is no driver or no such GPU."""

    def __init__(self, index: int = 0):
        try:
            cuda.init()
            if index >= cuda.Device.count():
                raise FastnasError(f"there is no GPU {index} ({cuda.Device.count()} found)")
            device = cuda.Device(index)
            self._context = device.retain_primary_context()
        except cuda.Error as error:
            raise FastnasError(f"no usable GPU or driver: {error}") from None
        atexit.register(self._release)  # the object lives until then: pycuda's destructor takes it for a context of its own
        self.name: str = device.name()
        self.capability: tuple[int, int] = device.compute_capability()
        self.memory_bytes: int = device.total_memory()

    def _release(self) -> None:
        self._context.push()
        self._context.detach()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Everything below needs it."""
        self._context.push()
        try:
            yield
        finally:
            cuda.Context.pop()


class Buffer:
    """Device memory that is freed with the object. `address` goes to an engine."""

    def __init__(self, size: int):
        self._memory = cuda.mem_alloc(max(size, 1))
        self.size, self.address = size, int(self._memory)

    @classmethod
    def holding(cls, array: np.ndarray) -> "Buffer":
        buffer = cls(array.nbytes)
        if array.nbytes:
            cuda.memcpy_htod(buffer._memory, np.ascontiguousarray(array))
        return buffer

    def read(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        array = np.empty(shape, dtype)
        if array.nbytes:
            cuda.memcpy_dtoh(array, self._memory)
        return array


class Stream:
    def __init__(self):
        self.object = cuda.Stream()
        self.handle: int = self.object.handle

    def wait(self) -> None:
        self.object.synchronize()


class Clock:
    """Times what is enqueued between two events."""

    def __init__(self, stream: Stream):
        self._stream, self._start, self._end = stream.object, cuda.Event(), cuda.Event()

    def time(self, enqueue: Callable[[], None]) -> float:
        """Seconds on the GPU. Spins until the end: a thread that sleeps wakes late, and the GPU has clocked down by then."""
        self._start.record(self._stream)
        enqueue()
        self._end.record(self._stream)
        while not self._end.query():
            pass
        return 1e-3 * self._start.time_till(self._end)


class Graph:
    """What `enqueue` puts on the stream, captured once. Raises FastnasError where that cannot be captured."""

    def __init__(self, stream: Stream, enqueue: Callable[[], None]):
        self._stream, self._executable = ctypes.c_void_p(stream.handle), ctypes.c_void_p()
        graph = ctypes.c_void_p()
        _call("cuStreamBeginCapture_v2", self._stream, ctypes.c_int(_THREAD_LOCAL))
        try:
            enqueue()
        finally:  # a stream that stays in capture mode is of no use to anybody
            ended = _driver().cuStreamEndCapture(self._stream, ctypes.byref(graph))
        if ended or not graph:
            raise FastnasError(f"the run cannot be captured as a CUDA graph (CUDA error {ended})")
        try:
            _call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        finally:
            _driver().cuGraphDestroy(graph)

    def launch(self) -> None:
        _call("cuGraphLaunch", self._executable, self._stream)

    def __del__(self):
        if getattr(self, "_executable", None):
            _driver().cuGraphExecDestroy(self._executable)


def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")  # loaded already, by pycuda


def _call(name: str, *arguments) -> None:
    if code := getattr(_driver(), name)(*arguments):
        raise FastnasError(f"{name} failed: CUDA error {code}")
