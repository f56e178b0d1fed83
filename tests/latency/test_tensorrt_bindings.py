"""Every name of TensorRT that the source touches exists in TensorRT 10 and 11, proved on NVIDIA's own Python bindings.

The bindings (wheels of 1 MB) load without TensorRT when the three libraries that they need are replaced by ones that define
the nine functions they ask for. Nothing can be built or run so: that is what `test_tensorrt_rtx` is for.
"""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.latency import tensorrt_names
from tests.latency.tensorrt_names import Touch, problems, touched, touched_by_fastnas

ROOT = Path(__file__).parents[2]
WHEELS = Path(os.environ.get("FASTNAS_TENSORRT_WHEELS") or Path(sys.prefix) / "tensorrt-wheels")
VERSIONS = {"10": "10.16.1.11", "11": "11.4.0.106"}
FUNCTIONS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL", "getPluginRegistry"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "initLibNvInferPlugins"),
)


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """Compiles a library that defines FUNCTIONS, for a file name."""
    folder = tmp_path_factory.mktemp("stubs")
    source = folder / "stub.c"
    source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in FUNCTIONS))

    def compile_(path: Path) -> None:
        command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", path, source]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("no C compiler (set CC)")

    return compile_


@pytest.fixture(params=sorted(VERSIONS))
def bindings(request, tmp_path, libraries):
    """A folder from which `tensorrt_bindings` of this major version can be imported."""
    version, python = VERSIONS[request.param], f"cp{sys.version_info.major}{sys.version_info.minor}"
    found = sorted(WHEELS.glob(f"tensorrt_cu13_bindings-{request.param}.*-{python}-*.whl"))
    if not found:
        how = f"pip download --no-deps -d {WHEELS} tensorrt_cu13_bindings=={version}"
        pytest.skip(f"no bindings of TensorRT {request.param} for {python} ({how})")
    zipfile.ZipFile(found[-1]).extractall(tmp_path)
    package = tmp_path / "tensorrt_bindings"
    needed = set(re.findall(rb"lib(?:nvinfer|nvinfer_plugin|nvonnxparser)\.so\.\d+", (package / "tensorrt.so").read_bytes()))
    assert len(needed) == 3
    for name in needed:
        libraries(package / name.decode())
    return tmp_path


def check(folder: Path | None, module: str, touches) -> dict:
    command = [sys.executable, tensorrt_names.__file__, module]
    rows = [(touch.path, touch.use, touch.positional, touch.keywords) for touch in touches]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(folder or ""), str(ROOT)]))}
    done = subprocess.run(command, input=json.dumps(rows), env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_that_is_touched_exists(bindings):
    found = check(bindings, "tensorrt_bindings", touched_by_fastnas())
    assert found["problems"] == [] and found["version"] in VERSIONS.values()


def test_tensorrt_rtx_has_it_too():
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed (pip install tensorrt_rtx)")
    assert check(None, "tensorrt_rtx", touched_by_fastnas())["problems"] == []


def test_what_does_not_exist_is_found(bindings):
    wrong = [
        Touch("Builder.create_engine", "call"),
        Touch("BuilderFlag.FASTER", "read"),
        Touch("ICudaEngine.num_io_tensors", "write"),
        Touch("IBuilderConfig.set_timing_cache", "call", 1, ("ignore",)),
        Touch("IBuilderConfig.set_timing_cache", "call", 1),
        Touch("Runtime", "call", 3),
        Touch("nptype", "call", 2),
    ]
    found = check(bindings, "tensorrt_bindings", wrong)["problems"]
    assert len(found) == len(wrong), found


def test_the_source_is_read_in_full():
    source = """
def build(trt, builder, other_config, count):
    builder.build_serialized_network(count, other_config)
    other_config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    return trt.Runtime(1).flags

class Log(trt.ILogger):
    def log(self): self._config.set_flag(flag=1)
"""
    assert touched(source) == {
        Touch("Builder.build_serialized_network", "call", 2),
        Touch("IBuilderConfig.profiling_verbosity", "write"),
        Touch("ProfilingVerbosity.DETAILED", "read"),
        Touch("Runtime", "call", 1),
        Touch("ILogger", "read"),
        Touch("ILogger.log", "read"),
        Touch("IBuilderConfig.set_flag", "call", 0, ("flag",)),
    }
    with pytest.raises(AssertionError, match="is thing one of TensorRT's objects"):
        touched("thing.run()")
    paths = {touch.path for touch in touched_by_fastnas()}
    assert {"OnnxParser.parse", "IExecutionContext.execute_async_v3", "IProfiler.report_layer_time", "Runtime"} <= paths


def test_problems_of_a_module():
    run = type("method", (), {"__doc__": "run(self: Thing, a: dict[str, int], b: int = 0) -> bool"})()
    module = type("module", (), {"Thing": type("Thing", (), {"run": run})})
    assert problems(module, [Touch("Thing.run", "call", 1), Touch("Thing.run", "call", 1, ("b",))]) == []
    assert "cannot be called" in problems(module, [Touch("Thing.run", "call", 0, ("b",))])[0]
