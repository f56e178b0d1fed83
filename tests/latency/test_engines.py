"""Opening engines: what is not installed, has no device or fails on a workload says so in one line."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fastnas.blueprint import blocks as b
from fastnas.errors import FastnasError, InputError
from fastnas.latency import engines, tensorrt
from fastnas.latency.engines import ENGINES, choose, choose_settings, gpu, open_engine
from fastnas.models.workload import BlockWorkload

WORKLOAD = BlockWorkload(b.Residual("basic", 8, 8, 1, "bn"), ((1, 8, 6, 6),))


class FakeDriver:
    """As `fastnas.latency.cuda_driver`, of a GPU that is there but runs nothing."""

    Error = type("Error", (Exception,), {})
    reason: Exception | None = None

    class Device:
        name, capability, memory_bytes = "Fake GPU", (9, 0), 1 << 30

        def __init__(self):
            if FakeDriver.reason:
                raise FakeDriver.reason

        def current(self):
            return memoryview(b"")  # any context manager


class FakeTensorRt:
    """Enough of the package for `TensorRt.__init__`; builds nothing."""

    __version__ = "11.4.0"
    ILogger = type("ILogger", (), {"__init__": lambda self: None, "Severity": SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)})

    @staticmethod
    def Runtime(logger):
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: logger.log(1, "no room\nfor the engine"))


@pytest.fixture
def packages(monkeypatch):
    """Modules that `importlib.import_module` shall find, or exceptions that it shall raise."""
    found = {"tensorrt": FakeTensorRt, "fastnas.latency.cuda_driver": FakeDriver}
    original = importlib.import_module

    def import_module(name):
        if isinstance(found.get(name), Exception):
            raise found[name]
        return found.get(name) or original(name)

    monkeypatch.setattr(FakeDriver, "reason", None)
    monkeypatch.setattr(tensorrt.importlib, "import_module", import_module)
    return found


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_that_is_not_installed_says_what_to_install(name, monkeypatch):
    module, _, install = ENGINES[name]
    for package in ("onnxruntime", "torch", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    for other in ("fastnas.models.timed", "fastnas.latency.torch_engine", "fastnas.latency.onnxruntime"):
        monkeypatch.delitem(sys.modules, other, raising=False)
    with pytest.raises(FastnasError) as caught:
        open_engine(name)
    assert not isinstance(caught.value, InputError)
    text = str(caught.value)
    assert text.startswith(f"engine {name} cannot run here: ") and install in text and "pip install" in text and "\n" not in text


def test_looking_up_engines_loads_none_of_them():
    code = "import sys, fastnas.latency.engines; sys.exit(bool({'torch', 'onnxruntime', 'tensorrt', 'pycuda'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_tensorrt_without_a_gpu(packages):
    FakeDriver.reason = FastnasError("no usable GPU or driver: cuInit failed: no device")
    with pytest.raises(FastnasError, match="engine tensorrt cannot run here: no usable GPU .*cuInit failed.*nvidia-smi"):
        open_engine("tensorrt")


def test_tensorrt_without_a_driver(packages):
    packages["fastnas.latency.cuda_driver"] = ImportError("libcuda.so.1: cannot open shared object file")
    with pytest.raises(FastnasError, match=r"libcuda.so.1: .* \(check the driver with: nvidia-smi\)"):
        open_engine("tensorrt")
    packages["fastnas.latency.cuda_driver"] = ImportError("No module named 'pycuda'")
    with pytest.raises(FastnasError, match=r"No module named 'pycuda' \(install it with: pip install 'fastnas\[tensorrt\]'"):
        open_engine("tensorrt")


def test_the_environment_of_tensorrt_holds_what_changes_latency(packages):
    texts = ["tensorrt", "tensorrt:fp16", "tensorrt:int8", "tensorrt,graph=off", "tensorrt,level=5", "tensorrt,tf32=off"]
    environments = [open_engine(text).environment() for text in texts]
    assert all(one != other for index, one in enumerate(environments) for other in environments[:index])
    first = environments[0]
    assert (first["engine"], first["version"], first["precision"], first["device"]) == ("tensorrt", "11.4.0", "fp32", "Fake GPU")
    assert first["device_id"] == "sm_90, 1073741824 bytes" and "driver" in first
    with pytest.raises(InputError, match="engine tensorrt has no level '6' .known: 3, 0, 1, 2, 4, 5"):
        open_engine("tensorrt,level=6")
    with pytest.raises(InputError, match="no precision 'bf16' .known: fp32, fp16, int8"):
        open_engine("tensorrt:bf16")


def test_timings_are_kept_by_version_and_device(packages, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTNAS_CACHE", str(tmp_path))
    paths = []
    for version, name in (("11.4.0", "A"), ("10.16.1", "A"), ("11.4.0", "B")):
        monkeypatch.setattr(FakeTensorRt, "__version__", version)
        monkeypatch.setattr(FakeDriver.Device, "name", name)
        paths.append(open_engine("tensorrt")._timings().path)
    assert len(set(paths)) == 3 and all(path.parent == tmp_path / "tensorrt" for path in paths)
    assert open_engine("tensorrt:fp16")._timings().path == paths[-1], "kernels of all precisions share a file"
    packages["tensorrt_rtx"] = FakeTensorRt
    assert open_engine("tensorrt-rtx")._timings() is None


def test_what_tensorrt_says_of_a_workload_is_one_line(packages, monkeypatch):
    monkeypatch.setattr(tensorrt, "build_plan", lambda *arguments: b"plan")
    with pytest.raises(FastnasError, match=r"engine tensorrt cannot run Residual\(.*\) at 1x8x6x6: no room for the engine$"):
        open_engine("tensorrt").prepare(WORKLOAD)


def test_tensorrt_gets_the_graph_in_its_precision(packages, monkeypatch):
    import onnx

    seen = {}

    def build_plan(trt, logger, model, settings, timings):
        seen.update(graph=onnx.ModelProto.FromString(model).graph, settings=settings)
        raise FastnasError("enough")

    monkeypatch.setattr(tensorrt, "build_plan", build_plan)
    for precision, operators in {"fp16": {"Conv", "Relu", "Add"}, "int8": {"QuantizeLinear", "DequantizeLinear"}}.items():
        with pytest.raises(FastnasError, match="enough"):
            open_engine(f"tensorrt:{precision},level=1").prepare(WORKLOAD)
        assert operators <= {node.op_type for node in seen["graph"].node} and seen["settings"]["level"] == "1"
        assert seen["graph"].input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def test_rtx_builds_here_and_says_why_it_cannot_load(packages):
    """Without a driver the engine is built for real, and TensorRT-RTX's own message comes back."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed (pip install tensorrt_rtx)")
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    packages["tensorrt_rtx"] = trt
    with pytest.raises(FastnasError, match=r"engine tensorrt-rtx cannot run Residual.*: .*CUDA|cudaError") as caught:
        open_engine("tensorrt-rtx:fp16").prepare(WORKLOAD)
    assert "\n" not in str(caught.value)


def test_choosing():
    assert choose("e", "level", None, ("3", "0")) == "3" and choose("e", "threads", "7", range(1, 9)) == "7"
    assert choose_settings("e", {"b": "2"}, {"a": ("x", "y"), "b": range(1, 3)}) == {"a": "x", "b": "2"}
    with pytest.raises(InputError, match="engine e has no a 'z' .known: x, y"):
        choose_settings("e", {"a": "z"}, {"a": ("x", "y")})


def test_gpus_of_one_name_are_told_apart():
    assert gpu("A100", (8, 0), 40 << 30) != gpu("A100", (8, 0), 80 << 30)


def test_every_engine_is_found_in_its_module():
    for module, cls, _ in engines.ENGINES.values():
        assert hasattr(importlib.import_module(module), cls) and module.startswith("fastnas.latency.")
