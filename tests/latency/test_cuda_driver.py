"""Buffers, streams, events and graphs through the real pycuda: on a driver in host memory (fake_cuda.c), and on a GPU if any."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import ctypes, json, os, sys
ctypes.CDLL("libcuda.so.1", os.RTLD_GLOBAL)
sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)  # the driver has only what is used
import numpy as np
from fastnas.errors import FastnasError
from fastnas.latency import cuda_driver as driver

def log():
    with open(os.environ["FAKE_CUDA_LOG"]) as lines:
        return lines.read().split()

def main():
    device = driver.Device()
    with device.current():
        array = np.arange(12, dtype=np.float16).reshape(3, 4)
        held, empty = driver.Buffer.holding(array.T), driver.Buffer(0)
        assert (held.read((4, 3), array.dtype) == array.T).all() and held.address and empty.address
        stream, calls = driver.Stream(), []
        clock, before = driver.Clock(stream), len(log())
        seconds = clock.time(lambda: calls.append("run"))
        timed = log()[before:]
        try:
            graph = driver.Graph(stream, lambda: calls.append("captured"))
            before = len(log())
            graph.launch()
            launched = log()[before:]
        except FastnasError as error:
            graph, launched = None, str(error)
        stream.wait()
        del graph, held, empty, clock, stream
    balance = [log().count(name) for name in ("cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2")]
    return {"balance": balance, "name": device.name, "capability": device.capability, "memory": device.memory_bytes,
            "seconds": seconds, "calls": calls, "timed": timed, "launched": launched}

try:
    print(json.dumps(main()))
except FastnasError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """The folder that holds libcuda.so.1."""
    if importlib.util.find_spec("pycuda") is None:
        pytest.skip("pycuda is not installed (pip install pycuda; needs the CUDA toolkit)")
    folder = tmp_path_factory.mktemp("cuda")
    source, target = Path(__file__).with_name("fake_cuda.c"), folder / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-Wall", "-Werror", f"-Wl,-soname,{target.name}"]
    command = [os.environ.get("CC", "cc"), *flags, "-o", target, source]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler (set CC)")
    return folder


@pytest.fixture
def play(library, tmp_path):
    """Runs SCRIPT on the fake driver: what it prints, and how often each function of the driver was called."""

    def play(**environment) -> tuple[dict, Counter]:
        paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        log = tmp_path / "calls"
        log.touch()
        environ = {**os.environ, "LD_LIBRARY_PATH": str(library), "PYTHONPATH": paths, "FAKE_CUDA_LOG": str(log), **environment}
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return json.loads(done.stdout), Counter(log.read_text().split())

    return play


def test_timed_and_captured(play):
    found, calls = play()
    assert (found["name"], found["capability"], found["memory"]) == ("Fake GPU", [9, 0], 1 << 30)
    assert found["seconds"] == 0.0025 and found["calls"] == ["run", "captured"]
    assert found["timed"] == ["cuEventRecord"] * 2 + ["cuEventQuery"] * 3 + ["cuEventElapsedTime_v2"], "spins, transfers nothing"
    assert found["launched"] == ["cuGraphLaunch"]
    for made, gone in {
        "cuMemAlloc_v2": "cuMemFree_v2",
        "cuStreamCreate": "cuStreamDestroy_v2",
        "cuEventCreate": "cuEventDestroy_v2",
        "cuGraphInstantiateWithFlags": "cuGraphExecDestroy",
        "cuStreamEndCapture": "cuGraphDestroy",
        "cuDevicePrimaryCtxRetain": "cuDevicePrimaryCtxRelease_v2",
    }.items():
        assert calls[made] == calls[gone] > 0, (made, calls)
    assert found["balance"] == [1, 1] and not calls["cuCtxDetach"]


def test_what_cannot_be_captured_leaves_the_stream_usable(play):
    found, calls = play(FAKE_CUDA_NO_CAPTURE="1")
    assert "cannot be captured as a CUDA graph (CUDA error 901)" in found["launched"]
    assert calls["cuStreamEndCapture"] == 1 and not calls["cuGraphInstantiateWithFlags"] and calls["cuStreamSynchronize"]


def test_no_device(play):
    found, _ = play(FAKE_CUDA_NO_DEVICE="1")
    assert found["error"].startswith("no usable GPU or driver: cuInit failed")


@pytest.mark.cuda
def test_on_a_gpu():
    """Work between the events is timed, alone and replayed; torch uses the same primary context."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    driver = pytest.importorskip("fastnas.latency.cuda_driver", reason="pycuda is not installed")
    device = driver.Device()
    assert device.capability == torch.cuda.get_device_capability()
    with device.current():
        array = np.random.default_rng(0).random((64, 33)).astype(np.float32)
        buffer = driver.Buffer.holding(array)
        np.testing.assert_array_equal(buffer.read(array.shape, array.dtype), array)
        stream = driver.Stream()
        clock, data = driver.Clock(stream), torch.zeros(1 << 26, device="cuda")
        torch.cuda.synchronize()

        def enqueue():
            with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
                data.add_(1)

        enqueue()
        stream.wait()
        seconds = clock.time(enqueue)
        assert 1e-5 < seconds < 1e-1
        graph = driver.Graph(stream, enqueue)
        replayed = clock.time(graph.launch)
        assert 0.2 * seconds < replayed < 5 * seconds and data[0].item() == 3
