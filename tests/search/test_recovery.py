"""What resuming may and may not do to a study and to what lies beside it."""

import json
import sqlite3
from pathlib import Path

import pytest

from fastnas.errors import FastnasError, InputError
from fastnas.search.record import FAILED, FINISHED, WAITING
from fastnas.search.study import Study
from tests.search.fakes import FakeEvaluator, config, drive


def new_study(folder, settings):
    return Study.create(folder, "spnas", settings.model_dump(mode="json"))


def test_a_linked_candidates_folder_is_refused_and_its_target_untouched(tmp_path):
    settings = config(candidates=2)
    with new_study(tmp_path / "s", settings) as study:
        drive(study, settings)
    (tmp_path / "precious" / "5").mkdir(parents=True)
    (tmp_path / "precious" / "5" / "a.jpg").write_text("mine")
    (tmp_path / "s" / "candidates").rename(tmp_path / "moved")
    (tmp_path / "s" / "candidates").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="candidates"):
        Study.open(tmp_path / "s", write=True)
    assert (tmp_path / "precious" / "5" / "a.jpg").read_text() == "mine"


def test_what_a_study_did_not_write_stays(tmp_path):
    settings = config(candidates=2)
    with new_study(tmp_path / "s", settings) as study:
        drive(study, settings)
    candidates = tmp_path / "s" / "candidates"
    (candidates / "notes").mkdir()
    (candidates / ".DS_Store").write_text("mine")
    (candidates / "77").mkdir()  # as an interrupted training leaves it: no row names it
    Study.open(tmp_path / "s", write=True).close()
    assert sorted(entry.name for entry in candidates.iterdir()) == [".DS_Store", "0", "1", "notes"]


class OutOfMemory(FakeEvaluator):
    def evaluate(self, job, progress=lambda share: None):
        if len(self.jobs) == 1:
            self.jobs.append(job)
            raise RuntimeError("not enough memory:\nyou tried to allocate 1 PB")
        return super().evaluate(job, progress)


def test_a_candidate_that_cannot_be_trained_does_not_stop_the_search(tmp_path):
    settings = config(candidates=5)
    with new_study(tmp_path / "s", settings) as study:
        front, _ = drive(study, settings, OutOfMemory())
        records = study.records()
    assert [r.state for r in records].count(FAILED) == 1 and records[1].state == FAILED
    assert "RuntimeError: not enough memory: you tried" in records[1].reason and front


def test_a_bug_puts_the_candidate_back(tmp_path):
    class Broken(FakeEvaluator):
        def evaluate(self, job, progress=lambda share: None):
            raise KeyError("bug")

    settings = config()
    with new_study(tmp_path / "s", settings) as study:
        with pytest.raises(KeyError):
            drive(study, settings, Broken())
        assert [r.state for r in study.records()] == [WAITING]


def test_a_search_without_any_full_training_fails_and_says_so(tmp_path):
    class NoFinal(FakeEvaluator):
        def evaluate(self, job, progress=lambda share: None):
            outcome = super().evaluate(job, progress)
            return type(outcome)({}, 1.0, "weights are no numbers") if job.phase == "final" else outcome

    settings = config(candidates=3)
    with new_study(tmp_path / "s", settings) as study:
        with pytest.raises(FastnasError, match="no full training"):
            drive(study, settings, NoFinal())
        assert [r.state for r in study.records()] == [FINISHED] * 3
    assert not (tmp_path / "s" / "pareto.json").exists()


@pytest.mark.parametrize("later", [{"candidates": 12}, {"epochs": {"final": 30}}])
def test_a_study_that_goes_on_compares_equally_trained_finals(tmp_path, later):
    with new_study(tmp_path / "s", config(candidates=3)) as study:
        drive(study, config(candidates=3))
    with Study.open(tmp_path / "s", write=True) as study:
        front, _ = drive(study, config(**{"candidates": 3, **later}))
        records = {r.id: r for r in study.records()}
    whole = {records[entry["id"]].total_epochs + records[entry["id"]].final.epochs for entry in front}
    assert len(whole) == 1 and whole == {max(r.total_epochs + r.final.epochs for r in records.values() if r.final)}
    assert front == json.loads((tmp_path / "s" / "pareto.json").read_text())
    assert records[0].final.epochs + records[0].total_epochs == whole.pop(), "the ancestor was topped up too"


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE candidates",
        "DROP TABLE finals",
        "DELETE FROM meta WHERE key = 'space'",
        "UPDATE meta SET value = '{' WHERE key = 'config'",
        "UPDATE meta SET value = '[]' WHERE key = 'config'",
        "UPDATE candidates SET blueprint = '{' WHERE id = 1",
        "UPDATE candidates SET blueprint = '{}' WHERE id = 1",
        "UPDATE candidates SET lineage = '[]' WHERE id = 1",
        "UPDATE candidates SET metrics = '[1]' WHERE id = 1",
        "UPDATE candidates SET state = 'lost' WHERE id = 1",
        "UPDATE candidates SET ap = 'high' WHERE id = 1",
        "UPDATE candidates SET reason = x'ff' WHERE id = 1",
        "UPDATE finals SET ap = 'high'",
        "UPDATE finals SET metrics = 'x'",
    ],
)
def test_a_damaged_study_is_named_and_left_as_it_is(tmp_path, change):
    settings = config(candidates=2)
    with new_study(tmp_path / "s", settings) as study:
        drive(study, settings)
    with sqlite3.connect(tmp_path / "s" / "study.db") as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute(change)
    db.close()
    before = (tmp_path / "s" / "study.db").read_bytes()
    with pytest.raises(InputError, match="study.db is no fastnas study or is damaged"), Study.open(tmp_path / "s") as study:
        study.records()
    assert (tmp_path / "s" / "study.db").read_bytes() == before


def test_a_study_that_is_locked_is_not_called_damaged(tmp_path):
    settings = config(candidates=2)
    with new_study(tmp_path / "s", settings) as study:
        drive(study, settings)
    other = sqlite3.connect(tmp_path / "s" / "study.db", isolation_level=None)
    other.execute("PRAGMA journal_mode = DELETE")
    with Study.open(tmp_path / "s") as reader:
        reader._db.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            reader.records()
    other.close()


def test_a_full_training_stays_until_a_longer_one_is_done(tmp_path):
    """Resumed with more epochs and interrupted: what pareto.json names is still there, and the next resume ends it."""
    settings = config(candidates=2, finalists=1)
    longer = settings.model_copy(update={"epochs": settings.epochs.model_copy(update={"final": 50})})
    folder = tmp_path / "s"
    with new_study(folder, settings) as study:
        entries, _ = drive(study, settings)
    with Study.open(folder, write=True) as study, pytest.raises(KeyboardInterrupt):
        drive(study, longer, FakeEvaluator(stop_at=0))
    with Study.open(folder, write=True) as study:
        assert all(record.final for record in study.records() if record.id in {entry["id"] for entry in entries})
        assert all((folder / entry["weights"]).is_file() for entry in entries)
        again, evaluator = drive(study, longer)
        assert {job.phase for job in evaluator.jobs} == {"final"} and evaluator.jobs[0].weights != Path(entries[0]["weights"]).name
    Study.open(folder, write=True).close()  # removes what no row names any more
    assert all((folder / entry["weights"]).is_file() for entry in again)
    assert not any((folder / entry["weights"]).exists() for entry in entries)
