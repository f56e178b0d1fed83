"""The engines `tensorrt` (10.x and 11.x) and `tensorrt-rtx`: one code path, the package is all that differs.

TensorRT-RTX builds engines on machines without a GPU. It has no non-maximum suppression, so it runs all blocks but proposal
selection and final suppression, and no whole network.
"""

import importlib
from collections.abc import Mapping

import onnx

from fastnas.errors import FastnasError
from fastnas.latency.engines import cannot_run, choose, choose_settings, environment, gpu
from fastnas.latency.tensorrt_builder import TimingCache, build_plan, make_logger
from fastnas.latency.tensorrt_runner import TensorRtRunner
from fastnas.models.onnx import in_precision
from fastnas.models.workload import Workload

PRECISIONS = ("fp32", "fp16", "int8")
SETTINGS = {"graph": ("on", "off"), "level": ("3", "0", "1", "2", "4", "5"), "tf32": ("on", "off")}


class TensorRt:
    name, package = "tensorrt", "tensorrt"
    keeps_timings = True

    def __init__(self, precision: str | None = None, settings: Mapping[str, str] | None = None):
        self.precision = choose(self.name, "precision", precision, PRECISIONS)
        self.settings = choose_settings(self.name, settings, SETTINGS)
        self._trt = importlib.import_module(self.package)
        self.version: str = self._trt.__version__
        try:
            self._driver = importlib.import_module("fastnas.latency.cuda_driver")
            self._device = self._driver.Device()
        except (FastnasError, ImportError) as error:
            if "libcuda" not in str(error) and isinstance(error, ImportError):
                raise  # pycuda itself is missing
            raise FastnasError(f"engine {self.name} cannot run here: {error} (check the driver with: nvidia-smi)") from None
        self._logger = make_logger(self._trt)
        self._runtime = self._trt.Runtime(self._logger)
        self._seconds = 0.0

    def clock(self) -> float:
        return self._seconds

    def environment(self) -> dict:
        settings = {**self.settings, "clock": "CUDA events", "typing": "strong"}
        device = self._device
        return environment(self, gpu(device.name, device.capability, device.memory_bytes), threads=1, settings=settings)

    def build(self, model: onnx.ModelProto) -> bytes:
        """The serialized engine of a static float32 model (which is changed). Raises FastnasError with TensorRT's own message."""
        content = in_precision(model, self.precision).SerializeToString()
        with self._device.current():
            return build_plan(self._trt, self._logger, content, self.settings, self._timings())

    def prepare(self, workload: Workload) -> TensorRtRunner:
        try:
            plan = self.build(workload.onnx(static=True))
            with self._device.current():
                engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise FastnasError(self._logger.errors[0] if self._logger.errors else "the engine that was built cannot be loaded")
            capture = self.settings["graph"] == "on"
            return TensorRtRunner(self._trt, self._driver, self._device, engine, workload.inputs(), capture, self._spend)
        except (FastnasError, self._driver.Error) as error:
            raise cannot_run(self, workload, error) from error

    def _spend(self, seconds: float) -> None:
        self._seconds += seconds

    def _timings(self) -> TimingCache | None:
        if not self.keeps_timings:
            return None
        found = gpu(self._device.name, self._device.capability, self._device.memory_bytes)
        return TimingCache(f"{self.name} {self.version} {sorted(found.items())}")


class TensorRtRtx(TensorRt):
    name, package = "tensorrt-rtx", "tensorrt_rtx"
    keeps_timings = False  # it compares no kernels when it builds
