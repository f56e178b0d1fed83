"""A TensorRT engine that is ready to run: buffers bound, warmed up, captured as a CUDA graph where it can be.

No data is transferred in a timed run. See `tensorrt_builder` for how variables are named.
"""

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fastnas.errors import FastnasError
from fastnas.latency.engines import Layer
from fastnas.latency.tensorrt_profile import inspect, join, make_profiler, write_layers, write_profile

WARM_UP = 3


class TensorRtRunner:
    """`driver` is the module `cuda_driver`; `spent(seconds)` is told how long each run took on the GPU."""

    def __init__(
        self, trt: ModuleType, driver: ModuleType, device: Any, engine: Any, inputs: Mapping[str, np.ndarray],
        capture: bool, spent: Callable[[float], None],
    ):  # fmt: skip
        self._trt, self._device, self._engine, self._spent = trt, device, engine, spent
        with device.current():
            self._stream = driver.Stream()
            self._clock = driver.Clock(self._stream)
            self._buffers: dict[str, Any] = {}
            self._shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}  # of the outputs
            self._context = engine.create_execution_context()
            if self._context is None:
                raise FastnasError("TensorRT made no execution context: the GPU may be out of memory")
            self._place(driver, inputs)
            self._bind(self._context)
            for _ in range(WARM_UP):
                self._enqueue()
            self._stream.wait()
            self._graph = self._captured(driver) if capture else None
        self.graph = self._graph is not None
        self._launch = self._graph.launch if self._graph else self._enqueue

    def run(self) -> None:
        with self._device.current():
            if self.graph:
                self._launch()  # keeps the GPU busy while the timed run is put behind it, so that no launch is timed
            self._spent(self._clock.time(self._launch))

    def outputs(self) -> dict[str, np.ndarray]:
        """Of the last run."""
        with self._device.current():
            return {name: self._buffers[name].read(*what) for name, what in self._shapes.items()}

    def layers(self, runs: int = 10) -> list[Layer]:
        return join(inspect(self._trt, self._engine), self._profile(runs))

    def export(self, folder: Path, name: str, runs: int = 10) -> tuple[Path, Path]:
        """Writes `layers_NAME.json` and `profile_NAME.json`."""
        return write_layers(folder, name, inspect(self._trt, self._engine)), write_profile(folder, name, self._profile(runs))

    def _profile(self, runs: int) -> dict[str, list[float]]:
        """Milliseconds of every run by layer: in a context of their own, for a profiler cannot be taken off, and never captured."""
        profiler = make_profiler(self._trt)
        with self._device.current():
            context = self._engine.create_execution_context()
            self._bind(context)
            context.execute_async_v3(self._stream.handle)
            self._stream.wait()
            context.profiler = profiler
            context.enqueue_emits_profile = False
            for _ in range(runs):
                context.execute_async_v3(self._stream.handle)
                self._stream.wait()
                if not context.report_to_profiler():
                    raise FastnasError("TensorRT reports no times of its layers")
        return profiler.times

    def _place(self, driver: ModuleType, inputs: Mapping[str, np.ndarray]) -> None:
        """Fills the inputs and makes room for the outputs. Inputs that nothing reads may be missing from the engine."""
        trt, engine = self._trt, self._engine
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                self._buffers[name] = driver.Buffer.holding(inputs[name].astype(dtype))
                continue
            shape = tuple(engine.get_tensor_shape(name))
            if -1 in shape:
                raise FastnasError(f"output {name} has a size that depends on the data: {shape}")
            self._shapes[name] = shape, dtype
            self._buffers[name] = driver.Buffer(prod(shape) * dtype.itemsize)

    def _bind(self, context: Any) -> None:
        for name, buffer in self._buffers.items():
            if not context.set_tensor_address(name, buffer.address):
                raise FastnasError(f"TensorRT takes no address for {name}")

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise FastnasError("TensorRT did not run the engine")

    def _captured(self, driver: ModuleType) -> Any:
        """None where the engine cannot be captured: what a suppression selects is not known before it ran."""
        try:
            graph = driver.Graph(self._stream, self._enqueue)
            graph.launch()
            self._stream.wait()
        except FastnasError:
            return None
        return graph
