"""The harness of the benchmarks: what it times, judges, writes and prints, with candidates of known speed."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("_bench")


def sleeper(seconds: float):
    return lambda: time.sleep(seconds)


def broken():
    raise RuntimeError("no kernel\nfor this type")


def run(bench, tmp_path, cases, *options: str, fails: bool = False) -> dict:
    arguments = ["--quick", "--threads", "1", "--out", str(tmp_path), *options]
    if fails:
        with pytest.raises(SystemExit) as exit_:
            bench.main("sample", cases, arguments)
        assert exit_.value.code == 1
    else:
        bench.main("sample", cases, arguments)
    return json.loads((tmp_path / "sample-cpu.json").read_text())


@pytest.fixture(autouse=True)
def threads_stay():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_row_is_timed_and_judged_against_the_strongest_peer(bench, tmp_path, capsys):
    def cases(device):
        assert device.type == "cpu"
        candidates = {"fastnas": sleeper(2e-3), "fastnas nchw": sleeper(1e-3), "eager": sleeper(20e-3), "compiled": sleeper(10e-3)}
        yield bench.Case("op", "3x4", "fp32", "nhwc", "forward", candidates, goal=1e-3, floor_bytes=10**9, max_error=1e-7)
        yield bench.Case("op", "5x6", "bf16", "nhwc", "backward", candidates, goal={"eager": 1e-3, "compiled": 1e6})

    document = run(bench, tmp_path, cases)
    first, second = document["rows"]
    assert {name: timing["runs"] >= 2 for name, timing in first["timings"].items()} == dict.fromkeys(first["timings"], True)
    assert first["timings"]["fastnas"]["min_ms"] <= first["timings"]["fastnas"]["median_ms"]
    assert first["timings"]["fastnas"]["min_ms"] >= 2
    medians = {name: timing["median_ms"] for name, timing in first["timings"].items()}
    strongest = min(("eager", "compiled"), key=medians.get)  # busy machines sleep long
    assert first["strongest"] == strongest and set(first["speedup"]) == {"eager", "compiled"}
    assert first["speedup_median"] == first["speedup"][strongest]["median"]
    assert first["speedup_median"] == pytest.approx(medians[strongest] / medians["fastnas"], rel=0.01)
    assert first["reached"] is True and second["reached"] is False
    seconds = first["timings"]["fastnas"]["median_ms"] / 1e3
    assert first["gbps"] == pytest.approx(1 / seconds, rel=1e-3)
    copy = document["copy"]["1 threads"]["memory"]["gbps"]
    assert first["percent_of_copy"] == pytest.approx(100 * first["gbps"] / copy, rel=0.02)
    assert first["copy"] == "memory" and first["max_error"] == 1e-7 and "gbps" not in second
    assert (first["device"], first["threads"], first["layout"], second["direction"]) == ("cpu", 1, "nhwc", "backward")
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[0] == "row" and "reached" in shown[1] and "MISSED" in shown[2]
    peers = [row["strongest"] for row in document["rows"]]
    assert len({line.index(peer) for line, peer in zip(shown[1:3], peers, strict=True)}) == 1  # aligned


def test_the_record_says_where_it_comes_from(bench, tmp_path, monkeypatch):
    monkeypatch.delenv("FASTNAS_COMMIT", raising=False)
    document = run(bench, tmp_path, lambda device: iter(()))
    assert document["versions"]["torch"] == torch.__version__ and document["versions"]["python"]
    assert document["machine"]["cpu"] and document["machine"]["cores"] == os.cpu_count() and len(document["machine"]["load"]) == 3
    assert document["command"].startswith("python ") and str(Path.home()) not in document["command"]
    assert document["operators"]["cpu"] and document["quick"] is True
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=BENCH, capture_output=True, text=True, check=False)
    assert (document["commit"] or "").removesuffix("-dirty") == done.stdout.strip()
    monkeypatch.setenv("FASTNAS_COMMIT", "abc")
    assert run(bench, tmp_path, lambda device: iter(()))["commit"] == "abc"


def test_a_candidate_that_raises_is_recorded_and_the_row_goes_on(bench, tmp_path):
    calls = []

    def later():
        calls.append(1)
        if len(calls) > 3:
            broken()

    def cases(device):
        several = {"fastnas": sleeper(1e-4), "peer": broken, "late": later, "slow": sleeper(1e-2)}
        yield bench.Case("op", "a", "bf16", "-", "both", several)
        yield bench.Case("op", "b", "bf16", "-", "both", {"fastnas": sleeper(1e-4), "peer": broken}, goal=3)

    first, second = run(bench, tmp_path, cases)["rows"]
    assert first["timings"]["peer"] == first["timings"]["late"] == {"error": "RuntimeError: no kernel for this type"}
    assert first["strongest"] == "slow" and set(first["speedup"]) == {"slow"}
    assert second["strongest"] is None and second["reached"] is None


def test_a_failure_of_ours_is_an_error_of_the_run(bench, tmp_path):
    def cases(device):
        yield bench.Case("op", "a", "fp32", "-", "forward", {"fastnas": broken, "peer": sleeper(1e-4)}, goal=3, floor_bytes=100)
        yield bench.Case("op", "b", "fp32", "-", "forward", {"fastnas": sleeper(1e-4)})

    first, second = run(bench, tmp_path, cases, fails=True)["rows"]
    assert first["reached"] is False and "gbps" not in first and "runs" in second["timings"]["fastnas"]


def test_cases_that_end_early_keep_what_was_measured(bench, tmp_path):
    def cases(device):
        yield bench.Case("op", "a", "fp32", "-", "forward", {"fastnas": sleeper(1e-4)})
        raise AssertionError("results differ")

    document = run(bench, tmp_path, cases, fails=True)
    assert len(document["rows"]) == 1
    assert document["problems"] == ["1 threads: the cases ended early: AssertionError: results differ"]


def test_goals_hold_for_one_thread_and_cases_are_asked_for_each_number_of_threads(bench, tmp_path):
    def cases(device):
        shape = str(torch.get_num_threads())
        yield bench.Case("op", shape, "fp32", "-", "forward", {"fastnas": sleeper(1e-4), "peer": sleeper(1e-3)}, goal=1e-3)

    rows = run(bench, tmp_path, cases, "--threads", "1", "2")["rows"]
    assert [(row["shape"], row["threads"], row["goal"]) for row in rows] == [("1", 1, 1e-3), ("2", 2, None)]
    assert rows[0]["reached"] is True and rows[1]["reached"] is None


def test_candidates_take_turns(bench):
    order = []
    bench.time_in_turn({name: lambda name=name: order.append(name) for name in "ab"}, torch.device("cpu"), 0.0, least=3)
    assert "".join(order) == "aabb" + "ab" * 3  # both warmed up, then in turn


def test_only_and_without(bench, tmp_path):
    def cases(device):
        for shape in ("small", "large"):
            candidates = {"fastnas": sleeper(1e-4), "peer": sleeper(1e-4), "compiled": broken}
            yield bench.Case("op", shape, "fp32", "-", "forward", candidates)

    (row,) = run(bench, tmp_path, cases, "--only", "large", "--without", "compiled")["rows"]
    assert row["shape"] == "large" and set(row["timings"]) == {"fastnas", "peer"}


def test_only_rows_that_are_measured_are_built(bench, tmp_path):
    built = []

    def make(shape):
        built.append(shape)
        return {"candidates": {"fastnas": sleeper(1e-4), "peer": sleeper(1e-4)}, "facts": {"weights": 3}}

    def cases(device):
        for shape in ("small", "large"):
            yield bench.Case("op", shape, "fp32", "-", "forward", goal=1e-3, build=lambda shape=shape: make(shape))

    (row,) = run(bench, tmp_path, cases, "--only", "large")["rows"]
    assert built == ["large"] and row["facts"] == {"weights": 3} and row["strongest"] == "peer" and row["reached"] is True
    with pytest.raises(ValueError, match="'op none fp32 - forward': no candidate is called 'fastnas'"):
        bench.Case("op", "none", "fp32", "-", "forward", build=lambda: {"candidates": {"peer": broken}}).built()


def test_a_partial_run_does_not_replace_the_record(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    bench.main("sample", lambda device: iter(()), ["--threads", "1", "--quick"])
    assert not list(tmp_path.iterdir()) and "not written" in capsys.readouterr().out
    monkeypatch.setattr(bench, "copy_bandwidth", lambda *_: {"memory": {"gbps": 1.0, "bytes": 2}})
    bench.main("sample", lambda device: iter(()), ["--threads", "1"])
    assert [path.name for path in tmp_path.iterdir()] == ["sample-cpu.json"]


def test_a_small_floor_is_compared_with_a_copy_in_the_cache(bench):
    copy = {"memory": {"gbps": 10.0, "bytes": 2**29}, "cache": {"gbps": 40.0, "bytes": 2**21}}
    ours = {"median_ms": 0.1, "min_ms": 0.1}
    assert bench._bandwidth(10**6, ours, copy) == {"floor_bytes": 10**6, "gbps": 10.0, "percent_of_copy": 25.0, "copy": "cache"}
    assert bench._bandwidth(10**7, ours, copy)["copy"] == "memory"


def test_a_goal_in_bandwidth(bench):
    row = {"goal": None, "goal_percent_of_copy": 80, "percent_of_copy": 70.0, "timings": {"fastnas": {}}}
    assert bench._reached(row) is False
    assert bench._reached({**row, "graph_percent_of_copy": 85.0}) is True


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--without", "fastnas"], ["--device", "tpu"]])
def test_wrong_options(bench, arguments):
    with pytest.raises(SystemExit) as exit_:
        bench.main("sample", lambda device: iter(()), arguments)
    assert exit_.value.code == 2


def test_a_case_needs_ours(bench):
    with pytest.raises(ValueError, match="no candidate is called 'fastnas'"):
        bench.Case("op", "a", "fp32", "-", "forward", {"eager": broken})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_line(bench):
    with pytest.raises(SystemExit, match="finds no GPU"):
        bench.main("sample", lambda device: iter(()), ["--device", "cuda"])


@pytest.mark.cuda
def test_cuda_rows_have_graphs_where_they_can_be_captured(bench, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    small, large = torch.randn(1000, device="cuda"), torch.randn(1 << 26, device="cuda")

    def cases(device):
        candidates = {"fastnas": lambda: small.relu(), "eager": lambda: small.clamp(min=0), "waits": lambda: small.sum().item()}
        yield bench.Case("op", "small", "fp32", "-", "forward", candidates, floor_bytes=8000)
        yield bench.Case("op", "large", "fp32", "-", "forward", {"fastnas": lambda: large.relu()}, floor_bytes=8 << 26)

    bench.main("sample", cases, ["--quick", "--device", "cuda", "--out", str(tmp_path)])
    document = json.loads((tmp_path / "sample-cuda.json").read_text())
    first, second = document["rows"]
    assert first["timings"]["fastnas"]["graph"]["median_ms"] <= first["timings"]["fastnas"]["median_ms"]
    assert "error" in first["timings"]["waits"]["graph"] and "graph" in first["speedup"]["eager"]
    assert "graph" not in second["timings"]["fastnas"] and 20 < second["percent_of_copy"] < 130
    assert document["machine"]["gpu"]["name"] and document["copy"]["device"]["memory"]["gbps"] > 0


def test_a_benchmark_runs_as_a_script(tmp_path):
    script = tmp_path / "bench_sample.py"
    script.write_text(
        "import torch\nfrom _bench import Case, main\n\n\ndef cases(device):\n"
        "    x = torch.randn(100)\n"
        "    yield Case('relu', '100', 'fp32', '-', 'forward', {'fastnas': x.relu, 'eager': lambda: x.clamp(min=0)})\n\n\n"
        "if __name__ == '__main__':\n    main('sample', cases)\n"
    )
    environ = {**os.environ, "PYTHONPATH": f"{BENCH}:{BENCH.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), "--quick", "--threads", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "sample-cpu.json").is_file() and "relu 100 fp32 - forward" in done.stdout


def test_graphs_are_compared_with_graphs(bench):
    def timing(median: float, graph: float | None) -> dict:
        return {"median_ms": median, "min_ms": median} | ({} if graph is None else {"graph": {"median_ms": graph, "min_ms": graph}})

    timings = {"fastnas": timing(0.02, 0.004), "eager": timing(0.1, 0.012), "waits": timing(0.06, None)}
    row = bench._compare(timings, None)
    assert (row["strongest"], row["speedup_median"], row["speedup_graph"]) == ("waits", 3.0, 3.0)


def test_the_bound_is_no_peer(bench):
    taken = {"fastnas": 2.0, "others": 3.0, "for free": 1.5}
    row = bench._compare({name: {"median_ms": time, "min_ms": time} for name, time in taken.items()}, "for free")
    assert (row["strongest"], row["speedup_median"], row["bound_median"]) == ("others", 1.5, 2.0)
    assert set(row["speedup"]) == {"others"}


def test_the_gpu_is_described_by_nvidia_smi(bench, tmp_path, monkeypatch):
    record = importlib.import_module("_record")
    script = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script.write_text("#!/bin/sh\n[ \"$1\" = --id=1 ] && echo '580.1, 1980 MHz, 3201 MHz, 1980 MHz, 40, 300.00 W, 700.00 W, 0 %'\n")
    script.chmod(0o755)
    facts = record.gpu_facts(torch.device("cuda", 1))
    assert facts["driver_version"] == "580.1" and facts["clocks.sm"] == "1980 MHz" and facts["utilization.gpu"] == "0 %"
    assert record.gpu_facts(torch.device("cuda", 0)) == {}
