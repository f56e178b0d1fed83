"""ONNX Runtime on one CPU thread: repeatable to a few percent on a busy machine, and installed everywhere."""

import time
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime

from fastnas.errors import InputError
from fastnas.latency.engines import cpu, environment

PRECISIONS = ("fp32",)


class OnnxRuntime:
    name = "onnxruntime"
    version = onnxruntime.__version__

    def __init__(self, precision: str | None = None):
        self.precision = PRECISIONS[0] if precision is None else precision
        if self.precision not in PRECISIONS:
            raise InputError(f"engine {self.name} has no precision {precision!r} (known: {', '.join(PRECISIONS)})")

    def clock(self) -> float:
        """Processor time of this thread, in which everything runs: time given to other processes does not count."""
        return time.thread_time()

    def environment(self) -> dict:
        settings = {"provider": "CPUExecutionProvider", "optimization": "all", "clock": "thread time"}
        return environment(self, cpu(), threads=1, settings=settings)

    def prepare(self, model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> "_Runner":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # one: runs in the caller's thread
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return _Runner(session, inputs)


class _Runner:
    """Inputs and outputs are bound once, so that a run is one call without conversions."""

    def __init__(self, session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray]):
        self._session = session
        self._binding = session.io_binding()
        self._arrays = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for array in inputs.values()]
        for name, value in zip(inputs, self._arrays, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            self._binding.bind_output(output.name, "cpu")

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> list[np.ndarray]:
        """Of the last run."""
        return self._binding.copy_outputs_to_cpu()
