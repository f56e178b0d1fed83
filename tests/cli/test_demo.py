"""The demo as `make demo` runs it: on the front stands a child that beats its ancestor after equally many epochs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastnas.search.study import Study


@pytest.mark.slow
def test_the_demo_finds_a_child_that_beats_its_ancestor(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "FASTNAS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", "from fastnas.cli import main; main()", "search", "--space", "spnas", "--out", tmp_path / "s"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Study.open(tmp_path / "s") as study:
        records = {record.id: record for record in study.records()}
    front = json.loads((tmp_path / "s" / "pareto.json").read_text())
    ancestor = records[0].final
    assert any(entry["id"] != 0 and entry["ap"] > ancestor.ap for entry in front)
    assert len({r.total_epochs + r.final.epochs for r in records.values() if r.final}) == 1
    assert (tmp_path / "s" / "report.html").stat().st_size > 100_000
