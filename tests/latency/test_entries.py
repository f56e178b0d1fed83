"""What the oracle knows of blocks, on an engine whose time is made: corrected baselines, and blocks that the engine cannot run."""

import sqlite3
from contextlib import closing
from typing import ClassVar

import pytest

import fastnas.latency.oracle
from fastnas.blueprint import expand, parse
from fastnas.errors import InputError
from fastnas.latency import Oracle, Unpriceable
from fastnas.latency.engines import cannot_run
from fastnas.latency.table import LatencyTable
from fastnas.latency.timing import Stopwatch
from tests.latency.fake_engine import FakeEngine
from tests.latency.test_oracle import DEEPER, SMALL, uses_of

LOADED = 1.4


def test_a_table_made_on_a_busy_machine_is_corrected(load, tmp_path):
    path, block = tmp_path / "latency.db", SMALL
    load(LOADED)
    with Oracle.open(path) as oracle:
        assert oracle.note is None
        assert oracle(block).predicted == pytest.approx(LOADED * uses_of(block)), "nothing better is known yet"
        assert oracle.measure_whole(block).median_ms == pytest.approx(LOADED)
    load(1.0)
    with Oracle.open(path, measure=False) as oracle:
        assert oracle(block).predicted == pytest.approx(LOADED * uses_of(block)), "reading changes nothing"
        assert oracle.measure_whole(block).median_ms == pytest.approx(1.0) and "left as they are" in oracle.note
    with Oracle.open(path) as oracle:
        assert str(path) in oracle.note and "dense x0.71, gather x0.71" in oracle.note
        assert oracle(block).predicted == pytest.approx(uses_of(block)) and oracle.missing([block]) == []
        assert oracle(DEEPER).predicted == pytest.approx(uses_of(DEEPER)), "old and new entries fit together"
        assert oracle.measure_whole(block).median_ms == pytest.approx(1.0)
    load(2.0)
    with Oracle.open(path) as oracle:
        assert oracle.note is None and oracle(DEEPER).predicted == pytest.approx(uses_of(DEEPER)), "now it is merely busy"
        assert oracle.measure_whole(block).median_ms == pytest.approx(1.0)
    with Oracle.open(path, measure=False) as oracle:
        assert oracle(block).predicted == pytest.approx(uses_of(block))


def test_a_correction_by_another_process_is_followed(load, tmp_path):
    path = tmp_path / "latency.db"
    load(LOADED)
    with Oracle.open(path) as first:
        assert first(SMALL).predicted == pytest.approx(LOADED * uses_of(SMALL))
        load(1.0)
        with Oracle.open(path) as second:
            assert second.note
        assert first(DEEPER).predicted == pytest.approx(uses_of(DEEPER)) and first(SMALL).predicted == pytest.approx(uses_of(SMALL))
    with Oracle.open(path) as oracle:
        assert oracle.note is None and oracle(DEEPER).predicted == pytest.approx(uses_of(DEEPER))


def test_a_block_measured_while_another_process_corrects_is_measured_again(load, tmp_path, monkeypatch):
    path = tmp_path / "latency.db"
    load(LOADED)
    with Oracle.open(path) as first:
        first(SMALL)
        load(1.0)
        original, others = Stopwatch.measure, []

        def measure(self, *args):
            found = original(self, *args)
            if not others:
                others.append(True)
                Oracle.open(path).close()
            return found

        monkeypatch.setattr(Stopwatch, "measure", measure)
        assert first(DEEPER).predicted == pytest.approx(uses_of(DEEPER))
    with Oracle.open(path, measure=False) as oracle:
        assert oracle(DEEPER).predicted == pytest.approx(uses_of(DEEPER))


def test_strange_baselines_are_refused(load, tmp_path):
    path = tmp_path / "latency.db"
    with Oracle.open(path) as oracle:
        oracle(SMALL)
        oracle.table._db.execute("UPDATE environments SET baselines = '{}'")
    for measure in (True, False):
        with pytest.raises(InputError, match="is damaged: baselines are '{}'.*--table"):
            Oracle.open(path, measure=measure)


class Refuses(FakeEngine):
    """Cannot prepare what has this many channels; fails while it runs what has `dies`. Counts what it is asked for."""

    refuses, dies = 16, None
    asked: ClassVar[list] = []

    def prepare(self, workload):
        spec = getattr(workload, "spec", None)
        Refuses.asked.append(spec)
        if Refuses.refuses and Refuses.refuses in (getattr(spec, "planes", None), getattr(spec, "hidden", None)):
            raise cannot_run(self, workload, "no kernel\nfor this")
        runner = super().prepare(workload)
        if spec is not None and spec.op == Refuses.dies:
            def run():
                raise ValueError("CUDA error 700")

            runner.run = run
        return runner


@pytest.fixture
def refusing(load, monkeypatch):
    monkeypatch.setattr(fastnas.latency.oracle, "open_engine", lambda text: Refuses())
    monkeypatch.setattr(Refuses, "refuses", 16)
    monkeypatch.setattr(Refuses, "dies", None)
    Refuses.asked.clear()
    return Refuses


FINE = parse("64x64/basic:1-1,base=8/fpn:8/rpn:20,topk=50/rcnn:32,detections=10/classes:3")


def test_what_the_engine_cannot_run_is_recorded_in_its_own_words(refusing, tmp_path):
    path = tmp_path / "latency.db"
    with Oracle.open(path) as oracle:
        with pytest.raises(Unpriceable, match="engine fake cannot run Residual.*: no kernel for this") as error:
            oracle(SMALL)
        assert oracle(FINE).predicted == pytest.approx(uses_of(FINE)), "other blueprints are priced"
        asked = len(refusing.asked)
        with pytest.raises(Unpriceable, match="no kernel for this"):
            oracle(SMALL)
        assert len(refusing.asked) == asked, "it is not tried again"
    for measure in (True, False):  # in another process
        with Oracle.open(path, measure=measure) as oracle, pytest.raises(Unpriceable) as again:
            oracle(SMALL)
        assert str(again.value) == str(error.value)
    table = LatencyTable(path, writable=False)
    failures = table.failures(table.environment(Refuses().environment()))
    assert list(failures.values()) == [str(error.value)] and all("residual" in key for key in failures)
    table.close()


def test_a_block_that_fails_while_it_runs(refusing, tmp_path):
    refusing.refuses, refusing.dies = None, "box-head"
    with Oracle.open(tmp_path / "latency.db") as oracle, pytest.raises(Unpriceable, match="cannot run BoxHead.*CUDA error 700"):
        oracle(SMALL)


def test_filling_goes_past_what_fails_and_tries_it_again(refusing, tmp_path):
    path, wanted = tmp_path / "latency.db", set(expand(SMALL).prices()) | set(expand(FINE).prices())
    with Oracle.open(path) as oracle:
        failing = [pair for pair in wanted if getattr(pair[0], "planes", getattr(pair[0], "hidden", 0)) == 16]
        assert oracle.fill([SMALL, FINE]) == len(wanted) - len(failing) and 0 < len(failing) == len(oracle.missing([SMALL, FINE]))
        assert oracle.priceable([SMALL, FINE]) == [FINE]
        refusing.refuses = None  # another driver was installed, or memory is free again
        assert oracle.fill([SMALL, FINE]) == len(failing) and oracle.priceable([SMALL, FINE]) == [SMALL, FINE]
        assert oracle(SMALL).predicted == pytest.approx(uses_of(SMALL))
    table = LatencyTable(path, writable=False)
    assert table.failures(table.environment(Refuses().environment())) == {}
    table.close()


def test_a_table_of_schema_2_is_read_and_upgraded(refusing, tmp_path):
    path = tmp_path / "latency.db"
    with Oracle.open(path) as oracle:
        oracle(FINE)
    with closing(sqlite3.connect(path)) as db:
        db.executescript("DROP TABLE failures; PRAGMA user_version=2")
    with Oracle.open(path, measure=False) as oracle:
        assert oracle(FINE).predicted == pytest.approx(uses_of(FINE))
    with Oracle.open(path) as oracle, pytest.raises(Unpriceable):
        oracle(SMALL)
