"""The oracle on a real engine: sums its blocks, measures each once, never makes up a number."""

import subprocess
import sys

import pytest

from fastnas.blueprint import expand, parse
from fastnas.errors import InputError
from fastnas.latency import Oracle, Price, Timing
from fastnas.latency.engines import open_engine
from fastnas.latency.oracle import FLOOR
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
    assert price.to_dict() == {"engine": "onnxruntime", "predicted": price.predicted, "low": price.low, "high": price.high}


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
