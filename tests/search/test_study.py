"""The study on disk: durable through kill -9, one writer, foreign and damaged folders refused unharmed."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fastnas.errors import FastnasError, InputError
from fastnas.search.study import Study
from tests.search.fakes import config, drive

WRITER = """
import sys
from pathlib import Path
from tests.search.fakes import FakeEvaluator, config, drive
from fastnas.search.study import Study

class Telling(FakeEvaluator):
    def evaluate(self, job, progress=None):
        outcome = super().evaluate(job)
        print(job.phase, job.folder.name, flush=True)
        return outcome

settings = config(candidates=400, finalists=3)
folder = Path(sys.argv[1])
study = Study.open(folder, write=True) if folder.exists() else Study.create(folder, "spnas", settings.model_dump(mode="json"))
with study:
    drive(study, settings, Telling())
"""


def contents(folder: Path) -> dict:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_kill_9_loses_no_finished_candidate_and_repeats_none(tmp_path):
    """A real process is killed again and again at arbitrary moments; what it had finished stays finished."""
    folder, trained = tmp_path / "s", []
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for lines in (3, 1, 7, 2):
        command = [sys.executable, "-c", WRITER, str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        seen = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        seen += rest.splitlines()
        with Study.open(folder) as study:
            done = {r.id for r in study.records() if r.state == "finished"}
        started = [int(line.split()[1]) for line in seen if line.strip()]
        repeated = set(started) & set(trained)
        assert not repeated, f"candidates {repeated} were finished and trained again"
        assert done >= set(trained)
        assert len(set(started) - done) <= 1, "more than the one under way was lost"
        trained = sorted(done)
    with Study.open(folder, write=True) as study:
        for record in study.records():
            if record.state == "finished":
                study.verified_weights(record.id)
        folders = {int(p.name) for p in (folder / "candidates").iterdir()}
        assert folders == {r.id for r in study.records() if r.state == "finished"}, "files without a row are removed"


def test_one_writer_many_readers(tmp_path):
    settings = config()
    with Study.create(tmp_path / "s", "spnas", settings.model_dump(mode="json")):
        with Study.open(tmp_path / "s") as reader:
            assert reader.records() == []
        with pytest.raises(InputError, match=f"process {os.getpid()}"):
            Study.open(tmp_path / "s", write=True)
    Study.open(tmp_path / "s", write=True).close()


def test_folders_that_hold_something_else_are_left_alone(tmp_path):
    settings = config().model_dump(mode="json")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "config.yaml").write_text("mine")
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.db").write_bytes(b"not a database" * 1000)
    foreign = sqlite3.connect(tmp_path / "foreign.db")
    foreign.execute("CREATE TABLE t (x)")
    foreign.commit()
    foreign.close()
    (tmp_path / "another").mkdir()
    os.rename(tmp_path / "foreign.db", tmp_path / "another" / "study.db")
    before = contents(tmp_path)
    for name, hint in (("photos", "another one"), ("file", "another one"), ("other", "--resume")):
        with pytest.raises(InputError, match=hint):
            Study.create(tmp_path / name, "spnas", settings)
    for name in ("photos", "missing"):
        with pytest.raises(InputError, match="no study"):
            Study.open(tmp_path / name)
    for name in ("other", "another"):
        for write in (False, True):
            with pytest.raises(InputError, match="no fastnas study"):
                Study.open(tmp_path / name, write=write)
    assert contents(tmp_path) == before


def test_a_newer_schema_is_refused(tmp_path):
    with Study.create(tmp_path / "s", "spnas", config().model_dump(mode="json")) as study:
        study.set_meta("schema", 99)
    with pytest.raises(InputError, match="schema 99"):
        Study.open(tmp_path / "s", write=True)


def test_changed_weights_are_noticed(tmp_path):
    settings = config(candidates=2)
    with Study.create(tmp_path / "s", "spnas", settings.model_dump(mode="json")) as study:
        drive(study, settings)
        file = tmp_path / "s" / "candidates" / "0" / "weights.safetensors"
        file.write_bytes(file.read_bytes() + b"x")
        with pytest.raises(FastnasError, match="was changed"):
            study.verified_weights(0)


def test_a_creation_that_was_killed_is_begun_again(tmp_path):
    folder = tmp_path / "s"
    (folder / "candidates").mkdir(parents=True)
    (folder / "config.yaml").write_text("half")
    (folder / ".study.db.draft").write_bytes(b"half")
    with Study.create(folder, "spnas", config().model_dump(mode="json")) as study:
        assert study.space == "spnas" and study.records() == []


def test_an_unwritable_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="name another folder"):
        Study.create(Path("/proc/none/such"), "spnas", {})
