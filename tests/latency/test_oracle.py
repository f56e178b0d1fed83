"""The oracle: sums its blocks, measures each once, never makes up a number. Tables that are corrected: test_entries.py."""

import subprocess
import sys

import pytest

from fastnas.blueprint import expand, parse
from fastnas.errors import InputError
from fastnas.latency import Oracle, Price, Timing
from fastnas.latency.engines import open_engine
from fastnas.latency.oracle import FLOOR
from fastnas.latency.table import LatencyTable
from fastnas.latency.timing import Stopwatch
from tests.latency.fake_engine import FakeEngine

SMALL = parse("64x64/basic:1-2,base=8/fpn:8/rpn:20,topk=50/rcnn:16,detections=10/classes:3")
DEEPER = parse("64x64/basic:1-21,base=8/fpn:8/rpn:20,topk=50/rcnn:16,detections=10/classes:3")


def uses_of(blueprint) -> int:
    return sum(len(block.uses) for block in expand(blueprint).blocks)


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
        assert oracle(once).predicted == pytest.approx(uses_of(once) - 1 + 10)
        assert oracle(twice).predicted == pytest.approx(uses_of(once) - 1 + 20)
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
