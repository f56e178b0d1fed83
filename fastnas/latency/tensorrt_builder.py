"""ONNX -> serialized TensorRT engine ("plan"), for TensorRT 10.x, 11.x and TensorRT-RTX, which all share this code.

Networks are strongly typed: the types stand in the graph (`fastnas.models.onnx.precision`), as TensorRT 11 demands and 10 allows.
`trt` is the package. Variables that hold its objects are called after their class here and in `tensorrt_runner`: tests read the
source for what is touched and look it up in the real bindings of every supported version.
"""

import hashlib
from pathlib import Path
from types import ModuleType
from typing import Any

from fastnas.errors import FastnasError
from fastnas.files import cache_folder, write_atomic

REPEATS = 8  # runs of every kernel that TensorRT compares when it builds; trtexec's default


def make_logger(trt: ModuleType) -> Any:
    """A logger that keeps error messages in `.errors`. TensorRT keeps using the first one that it is given."""

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity, msg):
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(msg)

    return Logger()


class TimingCache:
    """What TensorRT measured of its kernels, kept between builds: they are fast then, and choose the same kernels again.

    One file for each environment that may share it: TensorRT refuses caches of other versions and devices.
    """

    def __init__(self, environment: str, folder: Path | None = None):
        name = hashlib.sha256(environment.encode()).hexdigest()[:24]
        self.path = (folder or cache_folder() / "tensorrt") / f"{name}.timing"

    def read(self) -> bytes:
        return self.path.read_bytes() if self.path.is_file() else b""

    def write(self, content: bytes) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, content)
        except OSError as failure:
            raise FastnasError(f"cannot keep TensorRT's timings in {self.path}: {failure.strerror} (set FASTNAS_CACHE)") from None


def build_plan(trt: ModuleType, logger: Any, model: bytes, settings: dict[str, str], timings: TimingCache | None = None) -> bytes:
    """The plan of a serialized ONNX model. settings: `level` (optimization, 0 to 5) and `tf32` (on, off).

    Raises FastnasError with TensorRT's own messages.
    """
    logger.errors.clear()
    trt.init_libnvinfer_plugins(logger, "")  # RoIAlign is one
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parse(trt, logger, network, model)
    config = builder.create_builder_config()
    config.builder_optimization_level = int(settings["level"])
    config.avg_timing_iterations = REPEATS
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings["tf32"] == "on":
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if timings:
        _load_timings(config, timings)
    logger.errors.clear()  # of timings that were not to be used
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise FastnasError(_first(logger.errors) or "the builder returned no engine and no message")
    if timings:
        _save_timings(config, timings)
    return bytes(plan)


def parse(trt: ModuleType, logger: Any, network: Any, model: bytes) -> None:
    """Adds the layers of a serialized ONNX model to `network`. Raises FastnasError: a node that the parser does not take."""
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        error = parser.get_error(0) if parser.num_errors else None
        where = f"ONNX node {error.node_name()} ({error.node_operator()}): {error.desc()}" if error else _first(logger.errors)
        raise FastnasError(where or "the ONNX parser failed without a message")


def _load_timings(config: Any, timings: TimingCache) -> None:
    cache = config.create_timing_cache(timings.read())
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):  # damaged, or of another driver: start anew
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)


def _save_timings(config: Any, timings: TimingCache) -> None:
    """With what another process has written since the build began."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    before = timings.read()
    if before:
        other_cache = config.create_timing_cache(before)
        if other_cache is not None:
            cache.combine(other_cache, ignore_mismatch=False)
    content = bytes(cache.serialize())
    if content != before:
        timings.write(content)


def _first(messages: list[str]) -> str:
    """What went wrong first explains what came after."""
    return messages[0] if messages else ""
