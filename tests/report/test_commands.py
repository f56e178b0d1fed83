import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from fastnas.blueprint import parse
from fastnas.report.table import front_table
from fastnas.search.study import Study
from tests.report.studies import ANCESTOR, CONFIG, candidate

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-c", "from fastnas.cli import main; main()"]
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT)}


def fastnas(*arguments):
    return subprocess.run([*RUN, *map(str, arguments)], env=ENVIRON, capture_output=True, text=True)


def test_report_writes_the_page_again(grown):
    done = fastnas("report", grown.folder, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    page = grown.folder / "report.html"
    assert json.loads(done.stdout) == {"study": str(grown.folder), "report": str(page)}
    page.write_text("old")
    assert fastnas("report", grown.folder).stdout == f"{page}\n"
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_status_while_a_search_runs(grown):
    """The fixture holds the study open for writing, as a search does."""
    record = grown.add(candidate(parse(ANCESTOR.replace("11-21", "1111-21"))))
    grown.start(record.id)
    done = fastnas("status", grown.folder, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    status = json.loads(done.stdout)
    records = grown.records()
    assert status["searching"] is True
    assert status["running"] == [{"id": record.id, "text": record.blueprint.text}]
    assert status["states"]["finished"] == sum(record.state == "finished" for record in records)
    assert sum(status["states"].values()) == len(records)
    assert status["best_ap"] == max(record.final.ap for record in records if record.final)
    assert [member["ap"] for member in status["front"]] == sorted(member["ap"] for member in status["front"])


def test_status_of_a_study_that_was_killed(tmp_path):
    with Study.create(tmp_path / "s", "spnas", CONFIG) as study:
        study.start(study.add(candidate(parse(ANCESTOR))).id)
    done = fastnas("status", tmp_path / "s")
    assert done.returncode == 0
    assert "no search is running" in done.stdout
    assert "--resume trains it again" in done.stdout
    assert done.stdout.endswith("no candidate has finished yet\n")
    assert json.loads(fastnas("status", tmp_path / "s", "--json").stdout)["searching"] is False


def test_status_prints_the_table_as_plain_lines_into_a_pipe(grown):
    assert fastnas("status", grown.folder).stdout.endswith(front_table(grown.records()) + "\n")


def test_status_on_a_terminal(grown):
    main, child = pty.openpty()
    environ = {**ENVIRON, "COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen([*RUN, "status", str(grown.folder)], env=environ, stdout=child, stderr=child)
    os.close(child)
    output = b""
    while True:
        try:
            chunk = os.read(main, 65536)
        except OSError:  # Linux ends a terminal so
            break
        if not chunk:
            break
        output += chunk
    os.close(main)
    assert process.wait() == 0
    best = max((record for record in grown.records() if record.final), key=lambda record: record.final.ap)
    assert best.blueprint.backbone.code in output.decode() and "─" in output.decode()


@pytest.mark.parametrize("command", ["report", "status"])
def test_no_study(tmp_path, command):
    for folder in (tmp_path, tmp_path / "missing"):
        done = fastnas(command, folder)
        assert done.returncode == 2
        assert done.stdout == "" and done.stderr.count("\n") == 1
        assert str(folder) in done.stderr and "holds no study" in done.stderr
    (tmp_path / "study.db").write_text("no database")
    done = fastnas(command, tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.db"]


def test_a_page_that_cannot_be_written_is_bad_input(grown):
    (grown.folder / "report.html").unlink(missing_ok=True)
    (grown.folder / "report.html").mkdir()
    done = fastnas("report", grown.folder)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and f"cannot write {grown.folder / 'report.html'}" in done.stderr
