"""The driver with an evaluator that costs nothing: limits, duplicates, lineage, failures, interruption and resume."""

import json
import math
import zlib

import pytest

from fastnas.errors import FastnasError
from fastnas.latency import Unpriceable
from fastnas.search.driver import Listener
from fastnas.search.record import FAILED, FINISHED, REJECTED, WAITING
from fastnas.search.study import Study
from tests.search.fakes import FakeEvaluator, FakeOracle, config, drive


def new_study(folder, settings):
    return Study.create(folder, "spnas", settings.model_dump(mode="json"))


def summary(records):
    """What must not depend on how often a search was interrupted."""
    return [(r.id, r.blueprint.text, r.state, r.ap, r.lineage, r.total_epochs, r.final and r.final.ap) for r in records]


def test_a_search_trains_each_blueprint_once_and_reports_the_front(tmp_path):
    settings = config(candidates=10)
    with new_study(tmp_path / "s", settings) as study:
        front, evaluator = drive(study, settings)
        records = study.records()
    trained = [job for job in evaluator.jobs if job.phase == "search"]
    assert len(trained) == 10 == len({job.blueprint.text for job in trained})
    assert [r.state for r in records] == [FINISHED] * 10
    assert records[0].lineage.parent is None and trained[0].origin is None
    for record, job in zip(records[1:], trained[1:], strict=True):
        assert record.lineage.parent < record.id
        assert str(job.origin).endswith(f"candidates/{record.lineage.parent}/weights.safetensors")
        assert record.total_epochs == records[record.lineage.parent].total_epochs + settings.epochs.child
    finals = [job for job in evaluator.jobs if job.phase == "final"]
    assert len(finals) in (2, 3) and any(job.folder.name == "0" for job in finals), "the ancestor is trained along"
    whole = [job.epochs + records[int(job.folder.name)].total_epochs for job in finals]
    assert len(set(whole)) == 1, "fully trained candidates have seen equally many epochs"
    assert min(job.epochs for job in finals) == settings.epochs.final
    assert front == json.loads((tmp_path / "s" / "pareto.json").read_text())
    assert [e["latency_ms"] for e in front] == sorted(e["latency_ms"] for e in front)
    for entry in front:
        assert (tmp_path / "s" / entry["weights"]).is_file()
        assert set(entry) == {
            "id", "text", "blueprint", "ap", "ap50", "latency_ms", "predicted_ms", "params", "macs", "weights"
        }  # fmt: skip


@pytest.mark.parametrize(("limit", "attribute"), [("latency_ms", "predicted_ms"), ("params", "params"), ("macs", "macs")])
def test_what_is_over_a_limit_is_recorded_and_never_trained(tmp_path, limit, attribute):
    probe = config()
    from fastnas.search.driver import priced

    ancestor = priced(probe.make_space(3).ancestor, None, FakeOracle(), probe.limits)
    bound = getattr(ancestor, attribute) * 1.15
    settings = config(candidates=6, limits={limit: bound if limit == "latency_ms" else int(bound)})
    with new_study(tmp_path / "s", settings) as study:
        _, evaluator = drive(study, settings)
        records = study.records()
    rejected = [r for r in records if r.state == REJECTED]
    assert rejected, "the limit never bit: the test compares nothing"
    assert all(limit in r.reason and getattr(r, attribute) > bound for r in rejected)
    assert all(getattr(r, attribute) <= bound for r in records if r.state == FINISHED)
    assert not {r.blueprint.text for r in rejected} & {job.blueprint.text for job in evaluator.jobs}
    assert sum(r.state == FINISHED for r in records) == 6, "rejected candidates use up no training"
    assert not any((tmp_path / "s" / "candidates" / str(r.id)).exists() for r in rejected)


def test_a_diverged_candidate_is_recorded_and_is_nobodys_parent(tmp_path):
    settings = config(candidates=6)
    with new_study(tmp_path / "a", settings) as study:
        drive(study, settings)
        second = study.records()[1].blueprint.backbone.code
    with new_study(tmp_path / "b", settings) as study:
        drive(study, settings, FakeEvaluator(fail={second}))
        records = study.records()
    assert records[1].state == FAILED and "nan" in records[1].reason and records[1].ap is None
    assert len(records) == 6 and not any(r.lineage.parent == 1 for r in records)


def test_a_failing_ancestor_ends_the_search_with_its_reason(tmp_path):
    settings = config()
    with new_study(tmp_path / "s", settings) as study, pytest.raises(FastnasError, match="candidate 0: loss is nan"):
        drive(study, settings, FakeEvaluator(fail={"1-2-1"}))


@pytest.mark.parametrize("stop_at", range(10))
def test_interrupt_and_resume_equals_the_uninterrupted_run(tmp_path, stop_at):
    settings = config(candidates=7, limits={"macs": 9_000_000})
    with new_study(tmp_path / "whole", settings) as study:
        expected, everything = drive(study, settings)
        whole = summary(study.records())
    if stop_at >= len(everything.jobs):
        pytest.skip("the run has fewer trainings than that")
    with new_study(tmp_path / "cut", settings) as study, pytest.raises(KeyboardInterrupt):
        drive(study, settings, FakeEvaluator(stop_at=stop_at))
    with Study.open(tmp_path / "cut") as study:
        assert sum(r.state in (FINISHED, FAILED) for r in study.records()) == min(stop_at, 7)
        assert any(r.state == WAITING for r in study.records()) == (stop_at < 7)
    with Study.open(tmp_path / "cut", write=True) as study:
        front, rest = drive(study, settings)
        assert summary(study.records()) == whole
    assert front == expected
    assert len(rest.jobs) == len(everything.jobs) - stop_at, "no finished training is repeated"
    with Study.open(tmp_path / "cut", write=True) as study:
        assert drive(study, settings)[1].jobs == [], "a finished study has nothing left to do"


def test_more_candidates_may_be_asked_for_later(tmp_path):
    with new_study(tmp_path / "long", config(candidates=8)) as study:
        drive(study, config(candidates=8))
        expected = [r.blueprint.text for r in study.records()]
    with new_study(tmp_path / "short", config(candidates=4)) as study:
        drive(study, config(candidates=4))
        drive(study, config(candidates=8))
        assert [r.blueprint.text for r in study.records()] == expected


def test_a_small_space_ends_early(tmp_path):
    rules = {"p_expand": 1.0, "p_swap": 0, "p_add_stage": 0, "operations": 1, "max_blocks": 4}
    settings = config(candidates=50, rules=rules)
    with new_study(tmp_path / "s", settings) as study:
        drive(study, settings)
        assert {r.blueprint.backbone.code for r in study.records()} == {"1-2-1", "11-2-1", "1-21-1", "1-2-11"}


class Notes(Listener):
    def __init__(self):
        self.lines = []

    def note(self, line):
        self.lines.append(line)


def test_what_the_engine_cannot_run_is_rejected_with_its_words_and_the_search_goes_on(tmp_path):
    settings = config(candidates=8, seed=3)
    ancestor = settings.make_space(3).ancestor

    class Picky(FakeOracle):
        def __call__(self, blueprint):
            if blueprint != ancestor and zlib.crc32(blueprint.backbone.code.encode()) % 2:
                raise Unpriceable("engine fake cannot run Residual(...): no kernel for 64 channels")
            return super().__call__(blueprint)

    with new_study(tmp_path / "s", settings) as study:
        front, evaluator = drive(study, settings, oracle=Picky())
    with Study.open(tmp_path / "s") as study:
        records = study.records()
    refused = [r for r in records if r.state == REJECTED]
    assert refused and all("no kernel for 64 channels" in r.reason for r in refused)
    assert all(math.isnan(ms) for r in refused for ms in (r.predicted_ms, r.low_ms, r.high_ms, r.latency_ms))
    assert all(r.params > 0 and r.macs > 0 for r in refused), "what can be counted is counted"
    assert sum(r.state == FINISHED for r in records) == 8
    trained = {job.folder.name for job in evaluator.jobs}
    assert not trained & {str(r.id) for r in refused} and front and "NaN" not in (tmp_path / "s" / "pareto.json").read_text()


def test_on_a_device_that_is_not_here_nothing_is_measured_and_latency_is_null(tmp_path):
    class Absent(FakeOracle):
        runs_here = False

        def measure_whole_all(self, blueprints):
            raise AssertionError("nothing can be measured there")

    settings, notes = config(candidates=6), Notes()
    with new_study(tmp_path / "s", settings) as study:
        front, evaluator = drive(study, settings, listener=notes, oracle=Absent())
    assert [entry["latency_ms"] for entry in front] == [None] * len(front)
    assert [entry["predicted_ms"] for entry in front] == sorted(entry["predicted_ms"] for entry in front)
    assert json.loads((tmp_path / "s" / "pareto.json").read_text()) == front
    assert any("not measured whole, its latency_ms is null" in line for line in notes.lines)
    with Study.open(tmp_path / "s") as study:
        finals = [record for record in study.records() if record.final]
    assert len(finals) >= len(front) and all(record.final.latency_ms is None for record in finals)
    assert len([job for job in evaluator.jobs if job.phase == "final"]) == len(finals)
