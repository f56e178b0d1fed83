"""ONNX Runtime on one CPU thread: repeatable to a few percent on a busy machine, and installed everywhere."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from fastnas.latency.engines import Layer, cannot_run, choose, choose_settings, cpu, environment
from fastnas.models.workload import Workload

PRECISIONS = ("fp32",)


class OnnxRuntime:
    name = "onnxruntime"
    version = onnxruntime.__version__

    def __init__(self, precision: str | None = None, settings: Mapping[str, str] | None = None):
        self.precision = choose(self.name, "precision", precision, PRECISIONS)
        choose_settings(self.name, settings, {})

    def clock(self) -> float:
        """Processor time of this thread, in which everything runs: time given to other processes does not count."""
        return time.thread_time()

    def environment(self) -> dict:
        settings = {"provider": "CPUExecutionProvider", "optimization": "all", "clock": "thread time"}
        return environment(self, cpu(), threads=1, settings=settings)

    def prepare(self, workload: Workload) -> "_Runner":
        try:
            return _Runner(workload.onnx().SerializeToString(), workload.inputs())
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise cannot_run(self, workload, error) from error


def _session(model: bytes, profile: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # one: runs in the caller's thread
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _Runner:
    """Inputs and outputs are bound once, so that a run is one call without conversions."""

    graph = False

    def __init__(self, model: bytes, inputs: Mapping[str, np.ndarray]):
        self._model = model
        self._session = _session(model)
        self._arrays = {n: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for n, array in inputs.items()}
        self._binding = self._bound(self._session)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> list[np.ndarray]:
        """Of the last run."""
        return self._binding.copy_outputs_to_cpu()

    def layers(self, runs: int = 10) -> list[Layer]:
        """Nodes of the optimized graph, in order; ONNX Runtime measures in whole microseconds."""
        with tempfile.TemporaryDirectory() as folder:
            session = _session(self._model, Path(folder) / "profile")
            binding = self._bound(session)
            session.run_with_iobinding(binding)  # not counted: the first run allocates
            for _ in range(runs):
                session.run_with_iobinding(binding)
            events = json.loads(Path(session.end_profiling()).read_text())
        nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
        names = [(event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]) for event in nodes]
        total: Counter[tuple[str, str]] = Counter(dict.fromkeys(names, 0))
        for name, event in list(zip(names, nodes, strict=True))[len(nodes) // (runs + 1) :]:
            total[name] += event["dur"]
        return [Layer(name, kind, 1e-3 * microseconds / runs) for (name, kind), microseconds in total.items()]

    def _bound(self, session: onnxruntime.InferenceSession) -> onnxruntime.IOBinding:
        binding = session.io_binding()
        for name, value in self._arrays.items():
            binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            binding.bind_output(output.name, "cpu")
        return binding
