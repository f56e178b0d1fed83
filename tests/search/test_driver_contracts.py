"""What the driver hands on and what the study promises: lineages, measured latencies, durable writes, recovery."""

import sqlite3

import pytest

from fastnas.blueprint import Lineage
from fastnas.search.driver import priced
from fastnas.search.record import RUNNING, WAITING
from fastnas.search.study import Study
from tests.search.fakes import FakeOracle, config, drive


@pytest.fixture
def settings():
    return config(candidates=8)


@pytest.fixture
def study(tmp_path, settings):
    with Study.create(tmp_path / "s", "spnas", settings.model_dump(mode="json")) as study:
        yield study


def test_a_child_is_trained_along_its_own_lineage(study, settings):
    _, evaluator = drive(study, settings)
    records = {str(r.id): r for r in study.records()}
    jobs = [job for job in evaluator.jobs if job.phase == "search"]
    assert jobs[0].lineage is None and len(jobs) == 8
    for job in jobs[1:]:
        assert job.lineage == records[job.folder.name].lineage
    moved = [job for job in jobs[1:] if any(name != origin for name, origin in job.lineage.blocks.items())]
    assert moved, "no child has a moved block: the test compares nothing"
    for job in evaluator.jobs[8:]:
        assert job.phase == "final" and job.lineage is None, "the full training goes on with the candidate's own weights"
        assert job.origin == study.candidate_folder(int(job.folder.name)) / "weights.safetensors"


def test_the_front_has_latencies_of_whole_networks(study, settings):
    front, _ = drive(study, settings)
    assert front
    for entry in front:
        assert entry["latency_ms"] == pytest.approx(1.02 * entry["predicted_ms"], rel=1e-9)


def test_the_writer_commits_durably(study, monkeypatch):
    """WAL lets readers look while the writer works; synchronous=FULL (2) fsyncs every commit, whatever SQLite's own default."""
    assert pragmas(study) == [("wal",), (2,)]
    study.close()
    real = sqlite3.connect

    def careless(*args, **options):
        connection = real(*args, **options)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    monkeypatch.setattr(sqlite3, "connect", careless)
    with Study.open(study.folder, write=True) as again:
        assert pragmas(again) == [("wal",), (2,)]


def pragmas(study):
    return [study._db.execute(f"PRAGMA {name}").fetchone() for name in ("journal_mode", "synchronous")]


def test_a_candidate_that_was_running_waits_again(study, settings):
    record = study.add(priced(settings.make_space(3).ancestor, Lineage(), FakeOracle(), settings.limits))
    (study.start(record.id) / "weights.safetensors").write_bytes(b"half")
    study.close()  # as when the process dies: nothing was finished or put back
    with Study.open(study.folder) as reader:
        assert [r.state for r in reader.records()] == [RUNNING], "a reader changes nothing"
    with Study.open(study.folder, write=True) as writer:
        assert [r.state for r in writer.records()] == [WAITING]
        assert not writer.candidate_folder(record.id).exists()
        _, evaluator = drive(writer, settings)
    assert evaluator.jobs[0].folder.name == "0"
