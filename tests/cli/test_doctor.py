import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastnas.cli import doctor

ROOT = Path(__file__).parents[2]


def run(*arguments):
    done = CliRunner().invoke(doctor.command, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTNAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_here(cache):
    found = json.loads(run("--json"))
    assert set(found) == {"versions", "platform", "cpu", "memory", "cuda", "operators", "engines", "table"}
    import torch

    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["cpu"]["cores"] >= 1 and found["cpu"]["model"]
    assert found["memory"]["total_bytes"] >= found["memory"]["available_bytes"] > 0
    assert bool(found["cuda"]["devices"]) == torch.cuda.is_available()
    engines = {engine["name"]: engine for engine in found["engines"]}
    assert list(engines) == ["onnxruntime", "torch-cpu", "torch-cuda", "tensorrt", "tensorrt-rtx"]
    assert engines["onnxruntime"]["runs"] and engines["onnxruntime"]["version"] == found["versions"]["onnxruntime"]
    assert engines["torch-cpu"]["runs"] and engines["torch-cpu"]["precision"] == "fp32"
    assert all(bool(engine["problem"]) != engine["runs"] for engine in engines.values())
    assert found["table"]["path"] == str(cache / "latency.db") and not found["table"]["exists"]
    assert not cache.exists()  # looking makes nothing


def test_engines_that_cannot_run_say_what_to_do(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for package in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    problems = {engine["name"]: engine["problem"] for engine in json.loads(run("--json"))["engines"]}
    assert "pip install 'fastnas[tensorrt]'" in problems["tensorrt"]
    assert "pip install 'fastnas[tensorrt-rtx]'" in problems["tensorrt-rtx"]
    assert problems["torch-cuda"].startswith("cannot run here: ")
    text = run()
    for problem in filter(None, problems.values()):
        assert "\n" not in problem and problem in text


def test_bf16_as_the_training_sees_it():
    precision = pytest.importorskip("fastnas.train.precision")
    assert json.loads(run("--json"))["cpu"]["bf16_training_pays"] == precision.bf16_pays("cpu")


def test_the_table_is_counted(cache):
    from fastnas.latency.table import LatencyTable, default_path
    from fastnas.latency.timing import Timing

    table = LatencyTable(default_path())
    environment = table.add_environment({"engine": "onnxruntime", "version": "1", "precision": "fp32", "device": "A CPU"}, 1.0)
    table.put(environment, "block 1", Timing(1.0, 0.9, 0.01, 30))
    table.put(environment, "block 2", Timing(2.0, 1.9, 0.01, 30))
    table.close()
    found = json.loads(run("--json"))["table"]
    assert found["exists"] and found["entries"] == 2 and found["problem"] is None
    assert "2 blocks: onnxruntime 1 fp32 on A CPU" in run()


def test_a_damaged_table_is_reported(cache):
    cache.mkdir()
    (cache / "latency.db").write_text("no database")
    found = json.loads(run("--json"))["table"]
    assert "no latency table" in found["problem"] and found["entries"] == 0
    assert "no latency table" in run()


def test_what_is_missing_is_reported_and_nothing_fails():
    """Without torch, onnx, onnxruntime and the operators, as after a broken installation."""
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'fastnas.ops', 'fastnas.latency.table'): sys.modules[name] = None\n"
        "from fastnas.cli import main\n"
        "main()"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    for arguments in (["doctor"], ["doctor", "--json"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], env=environ, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    for part in ("cuda", "operators", "table"):
        assert found[part]["problem"]
    assert not any(engine["runs"] for engine in found["engines"])


def test_operators_that_were_not_built_come_with_advice(monkeypatch):
    ops = pytest.importorskip("fastnas.ops")
    nothing = {"library": "l.so", "loaded": False, "problem": "l.so was not built", "build": None}
    monkeypatch.setattr(ops, "build_info", lambda: {"torch": "2", "torch_cuda": None, "cpu": nothing, "cuda": nothing})
    assert "pip install ." in json.loads(run("--json"))["operators"]["problem"]
    text = run()
    assert "l.so was not built" in text and "pip install ." in text


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    assert json.loads(run("--json"))["versions"]["no-such-package"] is None
    assert "not installed" in run()
