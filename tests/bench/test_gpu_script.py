"""bench/gpu.sh as a real process: what it says where there is no GPU, and how it goes on through stages that fail.

The stages run with a stand-in for Python that plays the build, the tests and the benchmarks of a machine with a GPU.
"""

import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu.sh"

PYTHON = """#!/usr/bin/env bash
# $1: a script of fastnas, or -m pytest, or -c
case "$*" in
  *_gpu_report.py\\ check) [ -n "$NO_GPU" ] && { echo "gpu.sh: no GPU" >&2; exit 1; }; echo 9.0 ;;
  *_gpu_report.py\\ report*) exec REAL "$@" ;;
  -c*) echo "Stand-in GPU torch 0" ;;
  *setup.py*) [ "$FORCE_CUDA $TORCH_CUDA_ARCH_LIST" = "1 9.0" ] ;;
  *"-m sanitizer"*) exit 0 ;;
  *"-m cuda"*)
    [ -n "$HANG" ] && sleep 30
    for word in "$@"; do case $word in --junitxml=*) report=${word#--junitxml=} ;; esac; done
    printf '<testsuites><testsuite><testcase classname="a" name="b"/>' > "$report"
    printf '<testcase classname="a" name="c"><FAIL/></testcase>' >> "$report"
    printf '<testcase classname="a" name="d"><skipped/></testcase></testsuite></testsuites>' >> "$report"
    grep -q failure "$report" && exit 1; exit 0 ;;
  *bench_*.py*)
    for last in "$@"; do :; done
    name=$(basename "$1" .py)
    [ "$name" = "$BROKEN" ] && { echo "Traceback"; echo "RuntimeError: broken"; exit 1; }
    sed "s/NAME/${name#bench_}/" SAMPLE > "$last/${name#bench_}-cuda.json" ;;
  *) exit 3 ;;
esac
"""

SANITIZER = """#!/usr/bin/env bash
while [ $# -gt 0 ]; do
  case $1 in
    --tool) tool=$2; shift ;;
    --log-file) log=$2; shift ;;
    --kernel-name | --target-processes | --report-api-errors | --print-limit) shift ;;
    *) break ;;
  esac
  shift
done
"$@"; status=$?
cp "LOGS/$tool.txt" "$log"
exit $status
"""

CLEAN = """========= COMPUTE-SANITIZER
========= ERROR SUMMARY: 0 errors
"""
OF_TORCH = """========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::vectorized_elementwise_kernel<4, float>(int, float *)+0x70
=========     by thread (31,0,0) in block (1,0,0)
=========         Host Frame: suppress in nms.cu:41 [0x5] in libfastnas_cuda.so
=========
========= ERROR SUMMARY: 1 error
"""
OF_OURS = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at void fastnas::cuda::select(const unsigned long *)+0x460 in nms.cuh:41
=========     and Read access at void fastnas::cuda::select(const unsigned long *)+0x7a0 in nms.cuh:51 [508 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""


@pytest.fixture
def gpu(tmp_path):
    """Runs gpu.sh on the stand-in; returns (exit status, printed, document)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    copy = tmp_path / "fastnas"  # with two benchmarks, not with all
    shutil.copytree(ROOT / "bench", copy / "bench", ignore=shutil.ignore_patterns("bench_*.py", "results", "__pycache__"))
    (copy / "fastnas").symlink_to(ROOT / "fastnas")
    (copy / "tests").mkdir()
    (copy / "tests" / "test_a.py").write_text("@pytest.mark.cuda\n")
    for name in ("bench_a.py", "bench_b.py"):
        (copy / "bench" / name).write_text("from _bench import main\n")
    timing = {"median_ms": 1.0, "min_ms": 0.9, "runs": 5}
    row = {
        "operator": "op", "shape": "3x4", "dtype": "bf16", "layout": "nhwc", "direction": "forward", "device": "cuda",
        "threads": None, "timings": {"fastnas": timing}, "strongest": None, "goal": None, "reached": None,
    }  # fmt: skip
    sample = {
        "name": "NAME", "complete": True, "date": "now", "commit": "abc", "machine": {"gpu": {"name": "NVIDIA Stand-in 80GB"}},
        "versions": {}, "operators": {}, "copy": {"device": {}}, "problems": [], "rows": [row],
    }  # fmt: skip
    (tmp_path / "sample.json").write_text(json.dumps(sample))
    logs = {"memcheck": CLEAN, "racecheck": CLEAN, "initcheck": OF_TORCH}

    def run(failing_test: bool = False, sanitizer: dict[str, str] | None = None, **environ: str):
        python = PYTHON.replace("REAL", sys.executable).replace("SAMPLE", str(tmp_path / "sample.json"))
        python = python.replace("<FAIL/>", "<failure/>" if failing_test else "")
        for tool, text in (logs | (sanitizer or {})).items():
            (tmp_path / f"{tool}.txt").write_text(text)
        for name, text in (("python", python), ("compute-sanitizer", SANITIZER.replace("LOGS", str(tmp_path)))):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        whole = {**os.environ, "PYTHON": str(folder / "python"), "PATH": f"{folder}:{os.environ['PATH']}", **environ}
        command = [str(copy / "bench" / "gpu.sh"), str(tmp_path / "out")]
        done = subprocess.run(command, env=whole, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
        result = tmp_path / "out" / "nvidia-stand-in-80gb.json"
        return done, json.loads(result.read_text()) if result.is_file() else None

    return run


def status(document, name: str) -> str:
    return next(stage["status"] for stage in document["stages"] if stage["name"] == name)


def test_everything_goes_well(gpu):
    done, document = gpu()
    assert done.returncode == 0, done.stdout + done.stderr
    assert {stage["status"] for stage in document["stages"]} == {"ok"}
    assert [row["benchmark"] for row in document["rows"]] == ["a", "b"] and document["commit"] == "abc"
    assert document["tests"] == {"passed": 2, "failed": 0, "skipped": 1, "failures": []}
    assert document["sanitizer"]["initcheck"]["in_other_kernels"] == 1 and document["sanitizer"]["initcheck"]["findings"] == 0
    last = done.stdout.splitlines()
    assert "every stage that could run went well" in last[-1]
    assert sum(line.startswith("op 3x4 bf16 nhwc forward") for line in last) == 2


def test_a_failure_does_not_stop_the_later_stages(gpu):
    done, document = gpu(failing_test=True, sanitizer={"racecheck": OF_OURS}, BROKEN="bench_a")
    assert done.returncode == 1
    assert document["tests"]["failures"] == ["a::c"] and status(document, "tests") == "FAILED"
    assert document["sanitizer"]["racecheck"]["findings"] == 1 and status(document, "sanitizer-racecheck") == "FAILED"
    assert status(document, "sanitizer-memcheck") == status(document, "build") == "ok"
    assert status(document, "bench_a") == "FAILED" and status(document, "bench_b") == "ok" and len(document["rows"]) == 1
    assert "failed: tests, " in done.stdout.splitlines()[-1] and "RuntimeError: broken" in done.stdout


def test_a_sanitizer_that_refuses_the_machine_is_skipped_and_one_that_stops_fails(gpu):
    refused = "========= COMPUTE-SANITIZER\n========= Error: Device not supported. Please refer to the documentation.\n"
    done, document = gpu(sanitizer={"memcheck": refused, "racecheck": refused, "initcheck": "========= COMPUTE-SANITIZER\n"})
    assert done.returncode == 1
    assert status(document, "sanitizer-memcheck") == "skipped" and status(document, "sanitizer-initcheck") == "FAILED"


def test_a_stage_that_hangs_is_stopped_and_the_whole_has_a_limit(gpu, tmp_path):
    done, document = gpu(HANG="1", MINUTES="0.15")
    assert done.returncode == 1
    stages = {stage["name"]: stage for stage in document["stages"]} if document else {}
    text = done.stdout
    assert re.search(r"tests +FAILED +\d+ s  stopped at its limit of [5-9] s", text), text
    assert re.search(r"bench_a +FAILED +0 s  not run: no time was left", text), text
    assert not stages  # nothing was measured, so nothing says which GPU this was
    assert len(list((tmp_path / "out").glob("*.json"))) == 1
    assert "failed: tests, " in text.splitlines()[-1]


def test_no_gpu_is_said_before_anything_is_done(gpu, tmp_path):
    done, document = gpu(NO_GPU="1")
    assert (done.returncode, done.stdout, document) == (2, "", None) and done.stderr == "gpu.sh: no GPU\n"
    assert not (tmp_path / "out" / "logs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_script_says_that_this_machine_has_no_gpu(tmp_path):
    environ = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([str(SCRIPT), str(tmp_path)], env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert re.search(r"^gpu\.sh: (no GPU: torch .* finds none|torch .* is a build without CUDA)$", done.stderr, re.MULTILINE)


def test_a_python_that_is_not_there_is_one_line():
    done = subprocess.run([str(SCRIPT)], env={**os.environ, "PYTHON": "python-x"}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no python-x" in done.stderr


def test_every_cuda_source_has_tests_for_the_sanitizer():
    folder = ROOT / "tests" / "ops"
    chosen = runpy.run_path(str(folder / "conftest.py"))["SANITIZED"]
    for source in sorted(ROOT.glob("csrc/cuda/*.cu")):
        stems = [stem for stem in chosen if source.stem.startswith(stem.removeprefix("test_").removesuffix("_cuda"))]
        files = [folder / f"{stem}.py" for stem in stems if (folder / f"{stem}.py").is_file()]
        assert files, f"{source.name}: name its small CUDA tests in tests/ops/conftest.py"
        for file in files:
            missing = [name for name in chosen[file.stem] if f"def {name}(" not in file.read_text()]
            assert not missing, f"tests/ops/conftest.py names {missing}, which {file.name} does not have"


def test_findings_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    read = importlib.import_module("_gpu_report").read_sanitizer
    (tmp_path / "log").write_text(OF_TORCH.replace("ERROR SUMMARY: 1 error\n", "\n" + OF_OURS))
    found = read(tmp_path / "log")
    assert (found["findings"], found["in_other_kernels"]) == (1, 1) and "fastnas::cuda::select" in found["first"][0]
    assert found["summary"].startswith("RACECHECK SUMMARY: 1 hazard")
    assert read(tmp_path / "no such file")["summary"] is None
