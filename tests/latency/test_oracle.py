"""The oracle on a real engine: sums its blocks, measures each once, never makes up a number."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import ClassVar

import pytest

import fastnas.latency.entries
import fastnas.latency.oracle
from fastnas.blueprint import expand, parse
from fastnas.errors import InputError
from fastnas.latency import Oracle, Price, Timing, Unpriceable, timing
from fastnas.latency.engines import cannot_run, environment, open_engine
from fastnas.latency.oracle import FLOOR
from fastnas.latency.table import LatencyTable
from fastnas.latency.timing import Stopwatch

SMALL = parse("64x64/basic:1-2,base=8/fpn:8/rpn:20,topk=50/rcnn:16,detections=10/classes:3")
DEEPER = parse("64x64/basic:1-21,base=8/fpn:8/rpn:20,topk=50/rcnn:16,detections=10/classes:3")


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A table that holds the blocks of SMALL."""
    path = tmp_path_factory.mktemp("oracle") / "latency.db"
    with Oracle.open(path) as oracle:
        oracle(SMALL)
    return path


@pytest.fixture
def measured(monkeypatch):
    """Counts measurements."""
    calls = []
    original = Stopwatch.measure
    monkeypatch.setattr(Stopwatch, "measure", lambda self, *args, **kwargs: calls.append(args) or original(self, *args, **kwargs))
    return calls


def test_price_is_the_sum_of_the_blocks(filled, measured):
    with Oracle.open(filled) as oracle:
        price, rows = oracle(SMALL), oracle.blocks(SMALL)
    assert not measured, "everything was in the table"
    assert [row.name for row in rows] == [block.name for block in expand(SMALL).blocks]
    assert {row.name: row.count for row in rows}["rpn.head"] == 3
    assert all(row.ms > 0 for row in rows)
    assert price.predicted == pytest.approx(sum(row.ms for row in rows))
    assert price.low <= price.predicted * (1 - FLOOR) + 1e-9 and price.high >= price.predicted * (1 + FLOOR) - 1e-9
    shares = {"measured": 1.0, "interpolated": 0.0, "modelled": 0.0}
    interval = {"predicted": price.predicted, "low": price.low, "high": price.high}
    assert price.to_dict() == {"engine": "onnxruntime", **interval, **shares}


def test_only_what_is_missing_is_measured(filled, measured, tmp_path):
    path = tmp_path / "copy.db"
    path.write_bytes(filled.read_bytes())
    with Oracle.open(path) as oracle:
        missing = oracle.missing([SMALL, DEEPER])
        assert [spec.op for spec, _ in missing] == ["residual"] and not measured
        seen = []
        assert oracle.fill([SMALL, DEEPER], lambda *progress: seen.append(progress)) == 1
        assert seen == [(0, 1, missing[0])] and len(measured) == 1
        entries, price = oracle.entries(), oracle(DEEPER)
        assert oracle.missing([DEEPER]) == [] and oracle.fill([DEEPER]) == 0
    with Oracle.open(path, measure=False) as oracle:
        assert oracle(DEEPER) == price and oracle.entries() == entries
    assert len(measured) == 1


def test_nothing_is_made_up(filled, measured):
    with Oracle.open(filled, measure=False) as oracle:
        assert isinstance(oracle(SMALL), Price)
        with pytest.raises(InputError, match=r"lacks Residual\(kind='basic', in_channels=16.*1x16x8x8.*fastnas bench-latency"):
            oracle(DEEPER)
        with pytest.raises(InputError, match="lacks"):
            oracle.blocks(DEEPER)
    assert not measured


def test_what_another_process_measured_is_found(filled, measured, tmp_path):
    path = tmp_path / "shared.db"
    path.write_bytes(filled.read_bytes())
    with Oracle.open(path) as first, Oracle.open(path) as second:
        price = first(DEEPER)
        assert second(DEEPER) == price and len(measured) == 1


def test_forget(filled):
    with Oracle.open(filled) as oracle:
        price = oracle(SMALL)
        assert oracle(SMALL) is price
        oracle.forget(SMALL)
        assert oracle(SMALL) is not price and oracle(SMALL) == price


def test_whole_network(filled):
    with Oracle.open(filled) as oracle:
        entries = oracle.entries()
        timing = oracle.measure_whole(SMALL)
        assert isinstance(timing, Timing) and 0 < timing.min_ms <= timing.median_ms
        assert oracle.entries() == entries, "whole networks are not stored"
    with Oracle.open(filled, measure=False) as oracle:
        assert oracle.measure_whole(SMALL).median_ms > 0


def test_unknown_engines(tmp_path):
    for text, message in {
        "onnxruntimes": "unknown engine 'onnxruntimes', did you mean onnxruntime.*known: onnxruntime",
        "": "unknown engine ''.*known",
        "onnxruntime:int3": "no precision 'int3'.*known: fp32",
        "onnxruntime:": "no precision ''",
    }.items():
        with pytest.raises(InputError, match=message):
            Oracle.open(tmp_path / "latency.db", engine=text)
    assert not list(tmp_path.iterdir())
    assert open_engine("onnxruntime:fp32").environment() == open_engine("onnxruntime").environment()


def test_environment_names_what_must_be_equal():
    environment = open_engine("onnxruntime").environment()
    assert environment["engine"] == "onnxruntime" and environment["precision"] == "fp32" and environment["threads"] == 1
    assert environment["device"] and environment["version"] and environment["batch"] == 1


def test_reading_needs_a_table(tmp_path):
    with pytest.raises(InputError, match="cannot read the latency table"):
        Oracle.open(tmp_path / "none.db", measure=False)


def test_no_torch_is_loaded(filled):
    code = f"""
import sys
from fastnas.blueprint import parse
from fastnas.latency import Oracle
assert "onnxruntime" not in sys.modules
with Oracle.open({str(filled)!r}, measure=False) as oracle:
    oracle(parse({SMALL.text!r}))
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


LOADED = 1.4


class FakeEngine:
    """A run takes 1 ms of the machine's time, times `load`; the clock moves only when something runs."""

    name, version, precision, load = "fake", "1", "fp32", 1.0

    def __init__(self):
        self.now = 0.0

    def environment(self):
        return environment(self, {"device": "fake", "device_id": ""}, 1, {})

    def clock(self):
        return self.now

    def prepare(self, workload):
        def run():
            self.now += 0.001 * FakeEngine.load

        return type("Runner", (), {"run": staticmethod(run)})


@pytest.fixture
def load(monkeypatch):
    """Sets how busy the fake machine is."""
    monkeypatch.setattr(fastnas.latency.oracle, "open_engine", lambda text: FakeEngine())
    monkeypatch.setattr(timing, "QUIET_S", 0.01)
    monkeypatch.setattr(fastnas.latency.entries, "QUIET_AGAIN_S", 0.01)
    return lambda factor: monkeypatch.setattr(FakeEngine, "load", factor)


def _uses(blueprint) -> int:
    return sum(len(block.uses) for block in expand(blueprint).blocks)


def test_a_table_made_on_a_busy_machine_is_corrected(load, tmp_path):
    path, block = tmp_path / "latency.db", SMALL
    load(LOADED)
    with Oracle.open(path) as oracle:
        assert oracle.note is None
        assert oracle(block).predicted == pytest.approx(LOADED * _uses(block)), "nothing better is known yet"
        assert oracle.measure_whole(block).median_ms == pytest.approx(LOADED)
    load(1.0)
    with Oracle.open(path, measure=False) as oracle:
        assert oracle(block).predicted == pytest.approx(LOADED * _uses(block)), "reading changes nothing"
        assert oracle.measure_whole(block).median_ms == pytest.approx(1.0) and "left as they are" in oracle.note
    with Oracle.open(path) as oracle:
        assert str(path) in oracle.note and "dense x0.71, gather x0.71" in oracle.note
        assert oracle(block).predicted == pytest.approx(_uses(block)) and oracle.missing([block]) == []
        assert oracle(DEEPER).predicted == pytest.approx(_uses(DEEPER)), "old and new entries fit together"
        assert oracle.measure_whole(block).median_ms == pytest.approx(1.0)
    load(2.0)
    with Oracle.open(path) as oracle:
        assert oracle.note is None and oracle(DEEPER).predicted == pytest.approx(_uses(DEEPER)), "now it is merely busy"
        assert oracle.measure_whole(block).median_ms == pytest.approx(1.0)
    with Oracle.open(path, measure=False) as oracle:
        assert oracle(block).predicted == pytest.approx(_uses(block))


def test_a_correction_by_another_process_is_followed(load, tmp_path):
    path = tmp_path / "latency.db"
    load(LOADED)
    with Oracle.open(path) as first:
        assert first(SMALL).predicted == pytest.approx(LOADED * _uses(SMALL))
        load(1.0)
        with Oracle.open(path) as second:
            assert second.note
        assert first(DEEPER).predicted == pytest.approx(_uses(DEEPER)) and first(SMALL).predicted == pytest.approx(_uses(SMALL))
    with Oracle.open(path) as oracle:
        assert oracle.note is None and oracle(DEEPER).predicted == pytest.approx(_uses(DEEPER))


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
        assert first(DEEPER).predicted == pytest.approx(_uses(DEEPER))
    with Oracle.open(path, measure=False) as oracle:
        assert oracle(DEEPER).predicted == pytest.approx(_uses(DEEPER))


def test_strange_baselines_are_refused(load, tmp_path):
    path = tmp_path / "latency.db"
    with Oracle.open(path) as oracle:
        oracle(SMALL)
        oracle.table._db.execute("UPDATE environments SET baselines = '{}'")
    for measure in (True, False):
        with pytest.raises(InputError, match="is damaged: baselines are '{}'.*--table"):
            Oracle.open(path, measure=measure)


def test_a_block_that_is_repeated_counts_every_time(load, tmp_path):
    """SMALL has one residual block in its last stage; then come a stride-1 one, and the same one again."""
    once, twice = (parse(SMALL.text.replace("basic:1-2", f"basic:1-{code}")) for code in ("21", "211"))
    assert set(expand(once).prices()) == set(expand(twice).prices()), "no block that is new"
    path = tmp_path / "latency.db"
    repeated = max(expand(twice).prices() - expand(once).prices())
    table = LatencyTable(path)
    row = table.add_environment(FakeEngine().environment(), {"dense": 1.0, "gather": 1.0})
    for spec, shapes in expand(twice).prices():
        table.put(row, spec.key(shapes), Timing(10.0 if (spec, shapes) == repeated else 1.0, 1.0, 0.5, 5))
    table.close()
    with Oracle.open(path, measure=False) as oracle:
        assert oracle(once).predicted == pytest.approx(_uses(once) - 1 + 10)
        assert oracle(twice).predicted == pytest.approx(_uses(once) - 1 + 20)
        margin = oracle(twice).high - oracle(twice).predicted
        singles = sum(uses**2 for pair, uses in expand(twice).prices().items() if pair != repeated)
        assert margin == pytest.approx(2 * 0.5 * (singles + 20**2) ** 0.5), "its error repeats too"


def test_whole_networks_are_timed_together(filled):
    with Oracle.open(filled) as oracle:
        timings = oracle.measure_whole_all([SMALL, DEEPER])
    assert len(timings) == 2 and all(timing.median_ms > 0 and timing.spread >= 0 for timing in timings)
    assert min(timing.count for timing in timings) * 2 >= max(timing.count for timing in timings), "less those dropped"


def family(count: int) -> list:
    """Small networks of different size."""
    codes = ["1", "1-1", "1-2", "11-2", "1-21", "1-2-1", "11-21-1", "111-211"]
    return [parse(f"64x64/basic:{code},base=8/fpn:8/rpn:20,topk=50/rcnn:16,detections=10/classes:3") for code in codes[:count]]


def test_calibration_is_stored_and_corrects_prices(tmp_path, monkeypatch):
    path, networks = tmp_path / "latency.db", family(7)
    with Oracle.open(path) as oracle:
        assert oracle.calibration is None and "not calibrated" in oracle.calibration_note()
        oracle.fill(networks)
        sums = [oracle(network).predicted for network in networks]

        def measured(chosen):  # whole networks take 1.25 x the sum of their blocks
            return [Timing(1.25 * sums[networks.index(network)], 1.0, 0.01, 9) for network in chosen]

        monkeypatch.setattr(oracle, "measure_whole_all", measured)
        assert oracle.calibrate(networks[:6]).networks == 6
        assert oracle.calibrated() == {network.text for network in networks[:6]}
        price = oracle(networks[6])
        assert price.predicted == pytest.approx(1.25 * sums[6], rel=0.02) and price.low < price.predicted < price.high
        assert "calibrated on 6 networks" in oracle.calibration_note()
    with Oracle.open(path, measure=False) as oracle:
        assert oracle(networks[6]) == price


def test_calibration_far_off_a_line_is_not_used(tmp_path, monkeypatch):
    networks = family(6)
    with Oracle.open(tmp_path / "latency.db") as oracle:
        oracle.fill(networks)
        plain = oracle(networks[0])
        factors = iter([1.0, 3.0, 0.6, 2.5, 0.5, 4.0])
        monkeypatch.setattr(oracle, "measure_whole_all", lambda chosen: [Timing(next(factors), 0.1, 0.0, 9) for _ in chosen])
        oracle.calibrate(networks)
        assert oracle(networks[0]) == plain and "not used" in oracle.calibration_note()


def test_networks_that_this_version_cannot_read_are_left_out(filled, tmp_path):
    path = tmp_path / "copy.db"
    path.write_bytes(filled.read_bytes())
    with Oracle.open(path) as oracle:
        row = oracle.table.environment(oracle.environment)
        for text in ("64x64/transformer:9/classes:3", DEEPER.text):  # a part of the future; blocks that are not measured
            assert oracle.table.put_network(row, text, Timing(1.0, 1.0, 0.0, 9), {"dense": 1.0})
        assert oracle.calibration is None and len(oracle.calibrated()) == 2


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
        assert oracle(FINE).predicted == pytest.approx(_uses(FINE)), "other blueprints are priced"
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
        assert oracle(SMALL).predicted == pytest.approx(_uses(SMALL))
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
        assert oracle(FINE).predicted == pytest.approx(_uses(FINE))
    with Oracle.open(path) as oracle, pytest.raises(Unpriceable):
        oracle(SMALL)
