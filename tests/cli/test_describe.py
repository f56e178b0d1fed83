"""`fastnas describe` and what every command shares."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fastnas.cli.main import cli, main
from fastnas.errors import InputError

ROOT = Path(__file__).parents[2]


def fastnas(*arguments, loads=""):
    """Runs the command line in a process of its own; `loads` prints whether those modules were imported."""
    code = f"""
import sys
from fastnas.cli import main
try:
    main()
finally:
    print([m for m in {loads.split()} if m in sys.modules], file=sys.stderr)
"""
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_describe_follows_its_contract_and_loads_no_torch():
    done = fastnas("describe", "fasterrcnn-r50-fpn", "--json", loads="torch onnx numpy")
    described = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr.strip() == "[]"
    assert described["name"] == "fasterrcnn-r50-fpn" and described["input"] == [800, 1333]
    assert described["params"] == 41_808_406 == sum(block["params"] for block in described["blocks"])
    assert described["macs"] == sum(block["macs"] for block in described["blocks"])
    assert set(described) == {"name", "text", "blueprint", "input", "params", "macs", "blocks"}
    assert set(described["blocks"][0]) == {"name", "params", "macs", "uses", "inputs", "outputs"}
    again = json.loads(fastnas("describe", described["text"], "--json").stdout)
    assert again["blueprint"] == described["blueprint"] and again["blocks"] == described["blocks"]


def test_describe_counts_the_published_parameters():
    described = json.loads(fastnas("describe", "efficientdet-d0", "--json").stdout)
    assert described["params"] == 3_880_067 and described["input"] == [512, 512] and described["blueprint"]["rpn"] is None
    assert {block["name"]: block["uses"] for block in described["blocks"]}["head.classes"] == 5


@pytest.mark.parametrize(
    "text",
    [
        "64x80/basic:1-2,base=8,stem=3x3/fpn:16/rpn:20,scale=4/rcnn:16/classes:3",
        "64x80/efficientnet:0.25x0.2/bifpn:8,repeats=1,levels=3-5/effdet:1/classes:3",
    ],
)
def test_describe_prices_with_a_table(tmp_path, text):
    done = fastnas("describe", text, "--json", "--engine", "onnxruntime", "--table", str(tmp_path / "t.db"), loads="torch")
    price = json.loads(done.stdout)["latency_ms"]
    assert done.returncode == 0 and "torch" not in done.stderr
    assert price["engine"] == "onnxruntime" and 0 < price["low"] <= price["predicted"] <= price["high"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["describe", "240x320/basic:11-2x/fpn:8/rpn:1/rcnn:8/classes:1"], 2, "character 19"),
        (["describe", "resnet"], 2, "no preset"),
        (["describe"], 2, "Missing argument"),
        (["nonsense"], 2, "nonsense"),
        (["describe", "--what"], 2, "--what"),
        (["search"], 2, "--space"),
        (["search", "--space", "darts"], 2, "darts"),
        (["status", "/nowhere"], 2, "/nowhere"),
        (["report", "/nowhere"], 2, "/nowhere"),
    ],
)
def test_errors_are_one_line(arguments, code, says):
    done = fastnas(*arguments)
    lines = [line for line in done.stderr.splitlines() if line != "[]"]
    assert done.returncode == code and len(lines) == 1 and says in lines[0] and done.stdout == ""


def test_debug_shows_the_traceback():
    assert "Traceback" in fastnas("describe", "resnet", "--debug").stderr


def test_help_and_version():
    for arguments in (["--help"], ["search", "--help"], ["describe", "-h"], ["--version"]):
        done = fastnas(*arguments)
        assert done.returncode == 0 and done.stdout


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (sqlite3.DatabaseError("disk image is malformed"), 1, "error: cannot read or write the database: disk image is malformed"),
        (PermissionError(13, "Permission denied", "/a"), 2, "error: no permission for /a: check its permissions or name another"),
        (OSError(28, "No space left on device", "/a/b"), 1, "error: No space left on device: /a/b"),
        (KeyError("x"), 1, "internal error: KeyError: 'x' (run again with --debug and report it)"),
        (InputError("a\x1b[31m\nb"), 2, r"error: a\x1b[31m b"),
    ],
)
def test_errors_become_codes_and_printable_lines(error, code, says, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(cli, "main", fail)
    with pytest.raises(SystemExit) as caught:
        main(["describe"])
    assert caught.value.code == code and capsys.readouterr().err == f"fastnas: {says}\n"


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_hostile_files_are_bad_input(tmp_path, suffix):
    file = tmp_path / f"b.{suffix}"
    file.write_text("[" * 50_000)
    done = fastnas("describe", str(file))
    assert done.returncode == 2 and str(file) in done.stderr and "nested too deeply" in done.stderr
