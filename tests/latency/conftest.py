"""Fixtures shared by the tests of latency."""

from pathlib import Path

import pytest

import fastnas.latency.entries
import fastnas.latency.oracle
from fastnas.latency import timing
from fastnas.latency.table import LatencyTable
from fastnas.latency.tinynas import import_tinynas, read_tinynas
from tests.latency import published
from tests.latency.fake_engine import FakeEngine


@pytest.fixture(scope="session")
def published_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "conv.txt"
    path.write_text("\n".join(published.lines()) + "\n")
    return path


@pytest.fixture(scope="session")
def published_table(published_file) -> Path:
    """A table that holds the file as tensorrt:fp16 on v100."""
    path = published_file.with_name("v100.db")
    table = LatencyTable(path)
    import_tinynas(table, read_tinynas(published_file, "tensorrt:fp16", "v100"))
    table.close()
    return path


@pytest.fixture
def load(monkeypatch):
    """Sets how busy the fake machine is."""
    monkeypatch.setattr(fastnas.latency.oracle, "open_engine", lambda text: FakeEngine())
    monkeypatch.setattr(timing, "QUIET_S", 0.01)
    monkeypatch.setattr(fastnas.latency.entries, "QUIET_AGAIN_S", 0.01)
    return lambda factor: monkeypatch.setattr(FakeEngine, "load", factor)
