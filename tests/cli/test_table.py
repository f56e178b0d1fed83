"""`fastnas table` as a user calls it."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from fastnas.cli.describe import command as describe
from fastnas.cli.table import command
from fastnas.errors import FastnasError, InputError
from fastnas.latency import oracle
from tests.latency import published
from tests.latency.test_exchange import BLOCKS, HERE, NETWORK, make


def run(*arguments) -> dict:
    done = CliRunner().invoke(command, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_export_verify_merge_import_show(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTNAS_CACHE", str(tmp_path / "cache"))
    make(tmp_path / "a.db").close()
    assert run("export", tmp_path / "a.jsonl", "--table", tmp_path / "a.db")["entries"] == len(BLOCKS)
    for file in ("a.db", "a.jsonl"):
        assert run("verify", tmp_path / file)["entries"] == len(BLOCKS)
    assert run("merge", tmp_path / "a.jsonl", tmp_path / "a.db", "--into", tmp_path / "b.db")["taken"] == len(BLOCKS)
    assert run("import", tmp_path / "a.jsonl")["table"] == str(tmp_path / "cache" / "latency.db")
    for shown in (run("show", tmp_path / "b.db"), run("show")):
        [row] = shown["environments"]
        assert row["environment"] == HERE and row["entries"] == len(BLOCKS) and row["networks"] == 1 and row["calibration"] is None


def test_show_as_text(tmp_path):
    table = make(tmp_path / "a.db")
    row = table.environment(HERE)
    timing = table.networks(row)[NETWORK.text][0]
    for proposals in range(21, 27):  # as many networks as a calibration needs, of blocks that are known but for the proposals
        text = NETWORK.text.replace("rpn:20", f"rpn:{proposals}")
        table.put_network(row, text, timing, {"dense": 1.0})
    table.close()
    shown = CliRunner().invoke(command, ["show", str(tmp_path / "a.db")], catch_exceptions=False).stdout
    assert f"{len(BLOCKS)} blocks, 7 networks" in shown and "device: a" in shown


def test_bad_files(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "deep.jsonl").write_bytes(b"[" * 100_000)
    make(tmp_path / "a.db").close()
    damaged = bytearray((tmp_path / "a.db").read_bytes())
    damaged[4096:4200] = bytes(104)
    (tmp_path / "damaged.db").write_bytes(damaged)
    for arguments, message in [
        (["show", tmp_path / "missing.db"], "missing.db"),
        (["verify", tmp_path / "missing.db"], "missing.db"),
        (["verify", tmp_path / "photo.jpg"], "no exported latency table"),
        (["verify", tmp_path / "damaged.db"], "damaged"),
        (["import", tmp_path / "deep.jsonl", "--table", tmp_path / "new.db"], "no exported latency table"),
        (["export", tmp_path / "none" / "a.jsonl", "--table", tmp_path / "a.db"], "cannot write"),
        (["merge", tmp_path / "photo.jpg", "--into", tmp_path / "new.db"], "photo.jpg"),
    ]:
        with pytest.raises(InputError, match=message):
            CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert not (tmp_path / "new.db").exists(), "sources are read before anything is written"


def test_does_not_load_torch(tmp_path):
    make(tmp_path / "a.db").close()
    code = "import sys\nfrom fastnas.cli.table import command\ntry: command()\nexcept SystemExit: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, "show", str(tmp_path / "a.db")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "blocks" in done.stdout, done.stderr


def test_a_published_table_prices_a_device_that_is_not_here(tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "open_engine", _absent)
    file, path = tmp_path / "conv.txt", tmp_path / "v100.db"
    file.write_text("\n".join(published.lines()))
    where = ("--engine", "tensorrt:fp16", "--device", "v100", "--table", path)
    taken = run("import", "--format", "tinynas", file, *where)
    assert taken["table"] == str(path) and taken["taken"] == taken["offered"] > 1000
    [row] = run("show", path)["environments"]
    assert row["entries"] == taken["taken"] == run("verify", path)["entries"]
    assert row["environment"]["imported"]["file"] == "conv.txt"
    shown = CliRunner().invoke(command, ["show", str(path)], catch_exceptions=False).stdout
    assert "imported from conv.txt (tinynas)" in shown
    done = CliRunner().invoke(describe, ["fasterrcnn-r50-fpn", *map(str, where), "--json"], catch_exceptions=False)
    price = json.loads(done.stdout)["latency_ms"]
    assert price["engine"] == "tensorrt" and price["low"] < price["predicted"] < price["high"]
    assert price["measured"] + price["interpolated"] + price["modelled"] == pytest.approx(1)
    text = CliRunner().invoke(describe, ["fasterrcnn-r50-fpn", *map(str, where)], catch_exceptions=False).stdout
    assert "with tensorrt on v100" in text.splitlines()[-1] and "% modelled" in text.splitlines()[-1]


def _absent(text):
    raise FastnasError(f"engine {text} cannot run here: no device")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--format", "tinynas", "--device", "v100"], "needs --engine NAME:PRECISION and --device NAME"),
        (["--format", "tinynas", "--engine", "tensorrt:fp16"], "needs --engine NAME:PRECISION and --device NAME"),
        (["--format", "tinynas", "--engine", "tensorrt:fp16", "--device", "v100"], "is no TinyNAS table: line 1 is 'a letter'"),
        (["--device", "v100"], "are for a foreign --format"),
    ],
)
def test_imports_that_say_too_little_or_are_something_else(tmp_path, options, message):
    file = tmp_path / "letter.txt"
    file.write_text("a letter")
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(command, ["import", str(file), *options, "--table", str(tmp_path / "new.db")], catch_exceptions=False)
    assert not (tmp_path / "new.db").exists()
