"""No search loop times a whole network: only the finalists are, once, after the last candidate was trained."""

import pytest

from fastnas.blueprint import parse
from fastnas.latency import Oracle, timing
from fastnas.latency.onnxruntime import OnnxRuntime
from fastnas.models.workload import NetworkWorkload
from fastnas.search.driver import Driver, Listener
from fastnas.search.evolution import Evolution
from fastnas.search.executor import InProcess
from fastnas.search.study import Study
from tests.search.fakes import FakeEvaluator, config


class Evaluator(FakeEvaluator):
    """Notes each training in the same list as the timings."""

    def __init__(self, events):
        super().__init__()
        self.events = events

    def evaluate(self, job, progress=lambda share: None):
        self.events.append((job.phase, job.blueprint.text))
        return super().evaluate(job, progress)


@pytest.mark.parametrize("limit", [None, 1000.0])
def test_only_finalists_are_timed_whole(tmp_path, monkeypatch, limit):
    events, prepare = [], OnnxRuntime.prepare

    def noted(self, workload):
        if isinstance(workload, NetworkWorkload):
            events.append(("whole", workload.network.blueprint.text))
        return prepare(self, workload)

    monkeypatch.setattr(OnnxRuntime, "prepare", noted)
    settings = config(candidates=5, limits={"latency_ms": limit})
    evaluator = Evaluator(events)
    with Oracle.open(tmp_path / "latency.db") as oracle:
        with Study.create(tmp_path / "s", "spnas", settings.model_dump(mode="json")) as study:
            strategy = Evolution(settings.make_space(3), settings.seed)
            Driver(study, settings, strategy, InProcess(evaluator, evaluator), oracle, Listener()).run()
            finalists = [record.blueprint.text for record in study.records() if record.final]
    own = parse(timing.BETWEEN).text  # what runs between two runs of a block
    timed = [text for kind, text in events if kind == "whole" and text != own]
    assert sorted(timed) == sorted(finalists) and len(timed) >= 2, "each finalist once, nothing else"
    kinds = [kind for kind, text in events if text != own]
    assert kinds == ["search"] * 5 + ["whole"] * len(timed) + ["final"] * len(timed)
