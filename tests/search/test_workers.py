"""Candidates that train side by side: generations that survive interruption, and real worker processes that end as they should."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastnas.search.record import FAILED, FINISHED, WAITING
from fastnas.search.study import Study
from tests.search.fakes import FakeEvaluator, config, drive
from tests.search.test_driver import new_study, summary

ROOT = Path(__file__).parents[2]
TINY = """
space: spnas
candidates: 3
finalists: 1
workers: 2
ancestor: 64x80/basic:1-2,base=8,stem=3x3/fpn:16/rpn:20,scale=4,topk=50/rcnn:16/classes:3
epochs: {ancestor: 1, child: 1, final: 1}
"""


# ----------------------------------------------------------------------------------------------------------------------
# Generations, with trainings that cost nothing


def test_a_generation_has_one_parent_front(tmp_path):
    settings = config(candidates=8, workers=3)
    with new_study(tmp_path / "s", settings) as study:
        drive(study, settings)
        records = study.records()
    generations = [[0], [1, 2, 3], [4, 5, 6], [7]]
    for generation in generations[1:]:
        parents = {records[id].lineage.parent for id in generation}
        assert parents and all(parent < generation[0] for parent in parents), "nobody's parent is of its own generation"
    assert len(records) == 8 == len({r.blueprint.text for r in records})


@pytest.mark.parametrize("stop_at", range(11))
def test_interrupt_and_resume_equals_the_uninterrupted_run(tmp_path, stop_at):
    settings = config(candidates=8, workers=2, limits={"macs": 9_000_000})
    with new_study(tmp_path / "whole", settings) as study:
        expected, everything = drive(study, settings)
        whole = summary(study.records())
    if stop_at >= len(everything.jobs):
        pytest.skip("the run has fewer trainings than that")
    with new_study(tmp_path / "cut", settings) as study, pytest.raises(KeyboardInterrupt):
        drive(study, settings, FakeEvaluator(stop_at=stop_at))
    with Study.open(tmp_path / "cut") as study:
        states = [r.state for r in study.records()]
        assert sum(state in (FINISHED, FAILED) for state in states) == min(stop_at, 8)
        assert sum(state == WAITING for state in states) <= 2
    with Study.open(tmp_path / "cut", write=True) as study:
        front, rest = drive(study, settings)
        assert summary(study.records()) == whole
    assert front == expected and len(rest.jobs) == len(everything.jobs) - stop_at


def test_a_search_killed_while_it_asks_has_all_of_a_generation_or_none(tmp_path, monkeypatch):
    settings = config(candidates=5, workers=2)
    with new_study(tmp_path / "whole", settings) as study:
        drive(study, settings)
        whole = summary(study.records())
    inserted, original = [], Study._insert

    def dies(self, record):
        inserted.append(record)
        if len(inserted) == 3:  # the second of the first generation
            raise KeyboardInterrupt
        return original(self, record)

    with monkeypatch.context() as patched, new_study(tmp_path / "cut", settings) as study:
        patched.setattr(Study, "_insert", dies)
        with pytest.raises(KeyboardInterrupt):
            drive(study, settings)
        assert len(study.records()) == 1
    with Study.open(tmp_path / "cut", write=True) as study:
        drive(study, settings)
        assert summary(study.records()) == whole


# ----------------------------------------------------------------------------------------------------------------------
# Worker processes


@pytest.fixture
def search(tmp_path, shapes):
    """Starts a search with two workers in a process; returns (process, folder)."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    started = []

    def start(*more):
        arguments = ["search", "--space", "spnas", "--out", str(tmp_path / "s"), *more]
        if "--resume" not in more:
            arguments += ["--config", str(tmp_path / "tiny.yaml"), "--data", str(shapes)]
        process = subprocess.Popen(
            [sys.executable, "-c", "from fastnas.cli import main; main()", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "FASTNAS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start, tmp_path / "s"
    for process in started:
        process.kill()
        process.communicate()


def children(pid: int) -> list[int]:
    """Worker processes of a search (multiprocessing's resource tracker is not one)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            line = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z" and b"spawn_main" in line:
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def states(folder: Path) -> list[tuple[str, str]]:
    if not (folder / "study.db").exists():
        return []
    with sqlite3.connect(f"file:{folder / 'study.db'}?mode=ro", uri=True) as db:
        return db.execute("SELECT state, reason FROM candidates ORDER BY id").fetchall()


def wait_until(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, f"the search ended early: {process.communicate()}"
        assert time.monotonic() < deadline, "the search took too long"
        time.sleep(0.02)


def both(process, folder) -> list[int]:
    """Waits until two candidates train side by side; returns their processes."""
    wait_until(lambda: sum(state == "running" for state, _ in states(folder)) == 2 == len(children(process.pid)), process)
    return children(process.pid)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_workers_die_with_a_killed_search_and_it_goes_on_to_the_end(search):
    start, folder = search
    process = start()
    workers = both(process, folder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(map(alive, workers)), None, seconds=20)
    process = start("--resume")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert [state for state, _ in states(folder)] == ["finished"] * 3
    assert "AP50" in out and (folder / "pareto.json").is_file()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_worker_costs_one_candidate(search):
    start, folder = search
    process = start()
    os.kill(both(process, folder)[0], signal.SIGKILL)
    wait_until(lambda: any(state == "failed" for state, _ in states(folder)), process)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    failed = [reason for state, reason in states(folder) if state == "failed"]
    assert len(failed) == 1 and "killed by signal 9" in failed[0] and "failed, the process that trained it" in err
    assert sum(state == "finished" for state, _ in states(folder)) == 2


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_ctrl_c_puts_both_candidates_back(search):
    start, folder = search
    process = start()
    wait_until(lambda: children(process.pid), process)
    end = time.monotonic() + 1
    while time.monotonic() < end:  # from their first moment on, before they have said that they ignore it
        for pid in children(process.pid):
            os.kill(pid, signal.SIGINT)
        time.sleep(0.005)
    workers = both(process, folder)
    for pid in (*workers, process.pid):  # as a terminal does
        os.kill(pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in err and "Traceback" not in err
    assert sorted(state for state, _ in states(folder)) == ["finished", "waiting", "waiting"]
    wait_until(lambda: not any(map(alive, workers)), None, seconds=20)
