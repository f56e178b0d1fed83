"""`fastnas bench-latency` as a process and in-process: JSON, resuming, interruption, bad input."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from click.testing import CliRunner

from fastnas.blueprint import expand, parse
from fastnas.cli.bench_latency import command
from fastnas.errors import FastnasError, InputError
from fastnas.latency import oracle
from fastnas.latency.table import LatencyTable
from fastnas.latency.tinynas import import_tinynas, read_tinynas
from tests.latency import published

SMALL = "64x64/basic:1-2,base=8/fpn:8/rpn:20,topk=50/rcnn:16,detections=10/classes:3"
OTHERS = [SMALL.replace("basic:1-2", f"basic:{code}") for code in ("1-21", "12-1")]


def run(*arguments) -> dict:
    done = CliRunner().invoke(command, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_json(tmp_path):
    table = tmp_path / "latency.db"
    result = run(SMALL, *OTHERS, "--table", table)
    assert result["environment"]["engine"] == "onnxruntime" and result["environment"]["threads"] == 1
    texts = [parse(text).text for text in (SMALL, *OTHERS)]
    assert [network["text"] for network in result["networks"]] == texts
    distinct = {pair for text in texts for pair in expand(parse(text)).prices()}
    assert result["entries"] == len(distinct)
    for network in result["networks"]:
        assert 0 < network["low_ms"] < network["predicted_ms"] < network["high_ms"] and network["measured_ms"] > 0
        rows = [block["ms"] for block in result["blocks"] if block["network"] == network["text"]]
        assert sum(rows) == pytest.approx(network["predicted_ms"])
    accuracy = result["accuracy"]
    assert accuracy["n"] == 3 and accuracy["calibration_networks"] == 0 and accuracy["mape"] >= 0
    assert set(accuracy) >= {"within_5", "within_10", "kendall_tau", "repeat_mape", "interval_coverage", "macs_mape"}
    assert 0 < result["query_us"] < result["new_query_us"] < 1e3 * result["whole_network_ms"]
    assert 0 < result["batch_query_us"] < result["new_query_us"]

    before = measured_at(table)
    again = run(SMALL, "--table", table)
    assert again["entries"] == result["entries"] and again["accuracy"]["n"] == 1
    assert set(again) == set(result) and set(again["accuracy"]) == set(accuracy)
    unknown = {name for name, value in again["accuracy"].items() if value is None}
    of_several = {"kendall_tau", "split_coverage", "macs_mape", "macs_kendall_tau", "sum_kendall_tau"}
    assert unknown == of_several | {"operators_mape", "operators_scaled_mape", "operators_kendall_tau"}
    assert measured_at(table) == before, "nothing was measured anew"  # a busy machine's prices may have been corrected


def measured_at(table) -> list[tuple]:
    with closing(sqlite3.connect(table)) as db:
        return db.execute("SELECT block, count, spread, measured_at FROM entries ORDER BY block").fetchall()


def test_text(tmp_path):
    done = CliRunner().invoke(command, [SMALL, "--table", str(tmp_path / "latency.db")], catch_exceptions=False)
    for word in ("backbone.stage2.block1", "head.detections", "predicted", "1 networks: mean error"):
        assert word in done.stdout
    assert "blocks measured" in done.stderr and "blocks measured" not in done.stdout


def test_bad_input(tmp_path):
    photo = tmp_path / "photo.db"
    photo.write_text("no table")
    for arguments, message in [
        ([SMALL, "--table", photo], "is no latency table"),
        ([SMALL, "--engine", "onnx"], "unknown engine 'onnx'"),
        (["--space", "nospace"], "unknown space 'nospace'"),
        (["--config", "file.yaml"], "--config needs --space"),
        (["1x1/nothing"], "nothing"),
    ]:
        with pytest.raises(InputError, match=message):
            CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert photo.read_text() == "no table" and sorted(os.listdir(tmp_path)) == ["photo.db"]


def test_interrupting_keeps_what_was_measured(tmp_path):
    table = tmp_path / "latency.db"
    code = "from fastnas.cli import main; main()"
    arguments = [sys.executable, "-c", code, "bench-latency", "--space", "spnas", "--table", str(table)]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert "block 1/" in process.stderr.readline()
        while _entries(table) < 3:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and not out and "fastnas: interrupted" in errors and "Traceback" not in errors
    assert 3 <= _entries(table) < 20


def _entries(path) -> int:
    if not path.exists():
        return 0
    table = LatencyTable(path, writable=False)
    try:
        return sum(environment["entries"] for environment in table.environments())
    finally:
        table.close()


def test_a_space_is_calibrated_once_and_compared_on_others(tmp_path):
    config, table = tmp_path / "small.yaml", tmp_path / "latency.db"
    config.write_text(f"space: spnas\nancestor: {SMALL}\nrules: {{max_blocks: 4, max_stages: 2}}\n")
    arguments = ("--space", "spnas", "--config", config, "--table", table, "--networks", "2", "--calibrate", "5")
    result = run(*arguments)
    with closing(sqlite3.connect(table)) as db:
        calibrated = {text for (text,) in db.execute("SELECT text FROM networks")}
    held_out = {network["text"] for network in result["networks"]}
    assert len(calibrated) == result["accuracy"]["calibration_networks"] == 5 and len(held_out) == 2
    assert not held_out & calibrated, "accuracy is of networks that the calibration has not seen"
    accuracy = result["accuracy"]
    assert accuracy["sum_mape"] > 0 and accuracy["operators_mape"] > 0 and accuracy["repeat_median"] <= accuracy["repeat_p90"]
    again = run(*arguments)
    assert again["entries"] == result["entries"] and again["accuracy"]["calibration_networks"] == 5
    assert not {network["text"] for network in again["networks"]} & calibrated


def test_a_device_that_is_not_here_is_priced_and_nothing_is_compared(tmp_path, monkeypatch):
    def absent(text):
        raise FastnasError(f"engine {text} cannot run here: no device")

    monkeypatch.setattr(oracle, "open_engine", absent)
    file, path = tmp_path / "conv.txt", tmp_path / "v100.db"
    file.write_text("\n".join(published.lines()))
    table = LatencyTable(path)
    import_tinynas(table, read_tinynas(file, "tensorrt:fp16", "v100"))
    table.close()
    where = ("--engine", "tensorrt:fp16", "--device", "v100", "--table", path)
    result = run(SMALL, "--space", "spnas", "--networks", 2, *where)
    assert result["environment"]["device"] == "v100" and [n["text"] for n in result["networks"]][0] == parse(SMALL).text
    assert len(result["networks"]) == 3 and result["whole_network_ms"] is None and result["query_us"] > 0
    for network in result["networks"]:
        assert network["measured_ms"] is None and network["low_ms"] < network["predicted_ms"] < network["high_ms"]
        rows = [block["ms"] for block in result["blocks"] if block["network"] == network["text"]]
        assert sum(rows) == pytest.approx(network["predicted_ms"])
    known = {name: value for name, value in result["accuracy"].items() if value is not None}
    assert known == {"n": 0, "calibration_networks": 0} and set(result["accuracy"]) >= {"mape", "kendall_tau", "interval_coverage"}
    text = CliRunner().invoke(command, [SMALL, *map(str, where)], catch_exceptions=False).stdout
    assert "on v100" in text and "v100 is not here: nothing was measured" in text and "head.detections" in text
