"""The runner and the profile with a package and a driver that write down what is asked of them, in order.

That TensorRT has all that is asked is proved in `test_tensorrt_bindings`. On a GPU none of this has run yet.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fastnas.errors import FastnasError
from fastnas.latency.engines import Layer
from fastnas.latency.tensorrt_builder import TimingCache, _load_timings, _save_timings
from fastnas.latency.tensorrt_profile import join, write_layers, write_profile
from fastnas.latency.tensorrt_runner import WARM_UP, TensorRtRunner

INFORMATION = {
    "Layers": [
        {"Name": "Conv_1 + Relu_2", "LayerType": "CaskConvolution", "ParameterType": "Convolution", "TacticName": "sm90_x"},
        {"Name": "copy", "LayerType": "Reformat", "Origin": "REFORMAT"},
        {"Name": "never run", "LayerType": "NoOp"},
    ],
    "I/O Tensors": [],
}


class Log(list):
    """What happened, in order; `dtype` and the like are those of a TensorRT package."""


class Context:
    _reports = True

    def __init__(self, log, fails):
        self._log, self._fails, self.profiler, self.addresses = log, fails, None, {}

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, handle):
        assert set(self.addresses) == {"image", "boxes"} and handle == 77
        self._log.append("execute")
        return not self._fails

    def report_to_profiler(self):
        self.profiler.report_layer_time("Conv_1 + Relu_2", 0.25)
        self.profiler.report_layer_time("copy", 0.5)
        self.profiler.report_layer_time("Myelin", 0.25)
        return self._reports


class Engine:
    num_io_tensors = 2

    def __init__(self, log, shape=(2, 4), fails=False):
        self._log, self._shape, self._fails = log, shape, fails

    def create_execution_context(self):
        return Context(self._log, self._fails)

    def create_engine_inspector(self):
        return SimpleNamespace(get_engine_information=lambda form: json.dumps(INFORMATION))

    def get_tensor_name(self, index):
        return ("image", "boxes")[index]

    def get_tensor_mode(self, name):
        return "in" if name == "image" else "out"

    def get_tensor_dtype(self, name):
        return "half" if name == "image" else "float"

    def get_tensor_shape(self, name):
        return self._shape


TRT = SimpleNamespace(
    IProfiler=type("IProfiler", (), {}),
    TensorIOMode=SimpleNamespace(INPUT="in"),
    LayerInformationFormat=SimpleNamespace(JSON="json"),
    nptype={"half": np.float16, "float": np.float32}.__getitem__,
)


class Device:
    """Refuses nothing; counts how deep `current` is."""

    depth = 0

    def current(self):
        return self

    def __enter__(self):
        self.depth += 1

    def __exit__(self, *exception):
        self.depth -= 1


def make_driver(log, device, captures=True):
    class Buffer:
        def __init__(self, size):
            assert device.depth
            self.size, self.address, self.array = size, id(self), None

        @classmethod
        def holding(cls, array):
            log.append("copy in")
            buffer = cls(array.nbytes)
            buffer.array = array
            return buffer

        def read(self, shape, dtype):
            log.append("copy out")
            return np.zeros(shape, dtype)

    class Stream:
        handle = 77

        def wait(self):
            log.append("wait")

    class Clock:
        def __init__(self, stream):
            pass

        def time(self, enqueue):
            log.append("start")
            enqueue()
            log.append("end")
            return 0.002

    class Graph:
        def __init__(self, stream, enqueue):
            log.append("capture")
            enqueue()
            if not captures:
                raise FastnasError("the run cannot be captured")

        def launch(self):
            log.append("launch")

    return SimpleNamespace(Buffer=Buffer, Stream=Stream, Clock=Clock, Graph=Graph)


INPUTS = {"image": np.ones((1, 3, 4, 4), np.float32), "read by nobody": np.ones(3)}


def make(capture=True, captures=True, **options):
    log, device, spent = Log(), Device(), []
    runner = TensorRtRunner(TRT, make_driver(log, device, captures), device, Engine(log, **options), INPUTS, capture, spent.append)
    assert device.depth == 0
    return runner, log, spent


def test_warmed_up_then_captured():
    runner, log, _ = make()
    assert runner.graph
    assert log == ["copy in", *["execute"] * WARM_UP, "wait", "capture", "execute", "launch", "wait"]
    assert runner._buffers["image"].array.dtype == np.float16 and runner._buffers["boxes"].size == 2 * 4 * 4


def test_only_a_replay_is_timed_and_one_before_it_hides_its_launch():
    runner, log, spent = make()
    log.clear()
    runner.run()
    assert log == ["launch", "start", "launch", "end"] and spent == [0.002]
    assert runner.outputs()["boxes"].shape == (2, 4)


@pytest.mark.parametrize("options", [{"capture": False}, {"captures": False}])
def test_without_a_graph_the_engine_is_enqueued(options):
    runner, log, spent = make(**options)
    assert not runner.graph
    log.clear()
    runner.run()
    assert log == ["start", "execute", "end"] and spent == [0.002]


def test_what_tensorrt_refuses_is_an_error():
    with pytest.raises(FastnasError, match="did not run"):
        make(fails=True)
    with pytest.raises(FastnasError, match="boxes has a size that depends on the data"):
        make(shape=(-1, 4))


def test_layers_are_profiled_in_a_context_of_their_own():
    runner, log, spent = make()
    log.clear()
    assert runner.layers(runs=3) == [
        Layer("Conv_1 + Relu_2", "Convolution", 0.25),
        Layer("copy", "reformat", 0.5),
        Layer("Myelin", "", 0.25),
    ]
    assert log == ["execute", "wait"] * 4 and spent == []


def test_a_profiler_that_stays_silent_is_an_error(monkeypatch):
    runner, _, _ = make()
    monkeypatch.setattr(Context, "_reports", False)
    with pytest.raises(FastnasError, match="reports no times"):
        runner.layers()


def test_layers_without_details_keep_their_names():
    assert join({"Layers": ["a", "b"]}, {"b": [1.0, 3.0]}) == [Layer("b", "", 2.0)]


def test_files_are_trtexecs(tmp_path):
    runner, _, _ = make()
    layers, profile = runner.export(tmp_path / "new", "stem", runs=4)
    assert (layers.name, profile.name) == ("layers_stem.json", "profile_stem.json")
    assert json.loads(layers.read_text()) == INFORMATION
    count, first, *others = json.loads(profile.read_text())
    assert count == {"count": 4} and len(others) == 2
    assert first == {"name": "Conv_1 + Relu_2", "timeMs": 1.0, "averageMs": 0.25, "medianMs": 0.25, "percentage": 25.0}
    assert sum(row["percentage"] for row in (first, *others)) == pytest.approx(100)
    assert json.loads(write_profile(tmp_path, "nothing", {}).read_text()) == [{"count": 0}]
    assert write_layers(tmp_path, "x", {}).is_file()


class Cache:
    def __init__(self, content):
        self.content = content

    def combine(self, other, ignore_mismatch):
        assert ignore_mismatch is False
        self.content = bytes(sorted({*self.content, *other.content}))
        return True

    def serialize(self):
        return self.content


class Config:
    """Takes no cache that holds a `!`."""

    cache = None

    def create_timing_cache(self, content):
        return None if content == b"?" else Cache(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        self.cache = None if b"!" in cache.content else cache
        return self.cache is not None

    def get_timing_cache(self):
        return self.cache


@pytest.mark.parametrize(("stored", "used"), [(b"ab", b"ab"), (b"?", b""), (b"a!", b""), (b"", b"")])
def test_timings_of_another_driver_or_half_a_file_are_not_used(tmp_path, stored, used):
    timings, config = TimingCache("e", tmp_path / "new"), Config()
    if stored:
        timings.write(stored)
    _load_timings(config, timings)
    assert config.cache.content == used


def test_timings_that_cannot_be_written_say_where(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FastnasError, match=r"cannot keep TensorRT's timings in .*file.*: .* \(set FASTNAS_CACHE\)"):
        TimingCache("e", tmp_path / "file").write(b"a")


def test_timings_of_two_builds_at_once_are_joined(tmp_path):
    timings, config = TimingCache("e", tmp_path), Config()
    timings.write(b"a")
    _load_timings(config, timings)
    config.cache.content += b"c"
    timings.write(b"ab")  # another process
    _save_timings(config, timings)
    assert timings.read() == b"abc"
    timings.write(b"?")  # damaged: replaced
    _save_timings(config, timings)
    assert timings.read() == b"abc"
