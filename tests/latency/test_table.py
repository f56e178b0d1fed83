"""The latency table: durable, versioned, refuses other files, readable while it is written."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from fastnas.errors import InputError
from fastnas.latency.table import LatencyTable, default_path
from fastnas.latency.timing import Timing

HERE = {"engine": "test", "device": "none"}
BASELINES = {"dense": 0.5, "gather": 0.25}
TIMING = Timing(1.5, 1.4, 0.01, 12)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "latency.db"


def test_entries_come_back(path):
    table = LatencyTable(path)
    environment = table.add_environment(HERE, BASELINES)
    table.put(environment, "a", TIMING)
    table.put(environment, "a", Timing(2.0, 1.9, 0.02, 7))
    table.close()
    table = LatencyTable(path, writable=False)
    assert table.environment(dict(reversed(HERE.items()))) == environment, "the order of the keys does not matter"
    assert table.entries(environment) == {"a": Timing(2.0, 1.9, 0.02, 7)}
    assert table.get(environment, "b") is None
    assert table.environments() == [{**HERE, "entries": 1}]
    table.close()


def test_environments_are_kept_apart(path):
    table = LatencyTable(path)
    here, there = table.add_environment(HERE, BASELINES), table.add_environment({**HERE, "threads": 2}, BASELINES)
    table.put(here, "a", TIMING)
    assert table.get(there, "a") is None and table.environment({**HERE, "threads": 3}) is None
    assert table.add_environment(HERE, {"dense": 9.0}) == here, "the first baseline stays"
    table.close()


def test_a_reader_sees_a_table_that_is_written(path):
    writer = LatencyTable(path)
    environment = writer.add_environment(HERE, BASELINES)
    reader = LatencyTable(path, writable=False)
    for index in range(5):
        writer.put(environment, str(index), TIMING)
        assert len(reader.entries(environment)) == index + 1
    writer._db.execute("BEGIN IMMEDIATE")
    writer._db.execute("DELETE FROM entries")
    assert len(reader.entries(environment)) == 5, "what is not committed is not seen, and nobody waits"
    writer._db.execute("ROLLBACK")
    reader.close()
    writer.close()


def test_two_writers(path):
    first, second = LatencyTable(path), LatencyTable(path)
    here = first.add_environment(HERE, BASELINES)
    first.put(here, "a", TIMING)
    second.put(second.environment(HERE), "b", TIMING)
    assert set(first.entries(here)) == {"a", "b"}
    first.close()
    second.close()


WRITER = """
import sys
from contextlib import closing
from fastnas.latency.table import LatencyTable
from fastnas.latency.timing import Timing
table = LatencyTable(sys.argv[1])
environment = table.add_environment({"engine": "test", "device": "none"}, {"dense": 0.5})
for index in range(1_000_000):
    table.put(environment, f"block {index}", Timing(1 + index, 1.0, 0.01, 5))
    print(index, flush=True)
"""


def test_kill_while_writing_loses_nothing_that_was_stored(path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if int(line) == 40:
                break
    finally:
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
    acknowledged = int(rest[-1]) if rest else 40
    table = LatencyTable(path)
    entries = table.entries(table.environment(HERE))
    assert acknowledged + 1 <= len(entries) <= acknowledged + 2
    assert all(entries[f"block {index}"].median_ms == 1 + index for index in range(acknowledged + 1))
    assert table._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert table._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert table._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    table.close()


def _other_database(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE photos (name)")
    db.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("a letter to a friend, long enough to be mistaken for something else" * 3),
        lambda path: path.write_bytes(b""),
        _other_database,
    ],
    ids=["text", "empty", "database"],
)
@pytest.mark.parametrize("writable", [True, False])
def test_other_files_are_refused_and_left_alone(path, make, writable):
    path.parent.mkdir()
    make(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="is no latency table"):
        LatencyTable(path, writable)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_newer_schema_is_refused_and_left_alone(path):
    LatencyTable(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="schema 99.*update fastnas"):
        LatencyTable(path)
    assert path.read_bytes() == before


def test_a_damaged_table_is_refused(path):
    LatencyTable(path).close()
    content = bytearray(path.read_bytes())
    content[100:] = b"\xff" * (len(content) - 100)
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot open the latency table"):
        LatencyTable(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE entries SET median_ms = 'fast'", "an entry holds .'fast'"),
        ("UPDATE entries SET median_ms = x'00ff'", "an entry holds"),
        ("UPDATE entries SET median_ms = 9e999", "an entry holds .inf"),
        ("UPDATE entries SET min_ms = 'x'", "an entry holds"),
        ("UPDATE entries SET spread = -1", "an entry holds"),
        ("UPDATE entries SET count = 'many'", "an entry holds"),
        ("UPDATE entries SET median_ms = CAST(x'ff' AS TEXT)", "UTF-8"),
        ("UPDATE environments SET baselines = '{\"dense\": '", "baselines is '.*no JSON object"),
        ("UPDATE environments SET baselines = '[1]'", "baselines is '.1.', no JSON object"),
        ("UPDATE environments SET baselines = '{\"dense\": true}'", "baselines are"),
        ("UPDATE environments SET baselines = '{\"dense\": 0}'", "baselines are"),
        ("UPDATE environments SET baselines = x'00'", "baselines"),
        ("UPDATE environments SET description = 'none'", "a description is 'none'"),
        ("ALTER TABLE entries RENAME COLUMN spread TO width", "no such column"),
        ("DROP TABLE entries", "no such table"),
    ],
)
def test_damaged_values_are_named(path, change, message):
    table = LatencyTable(path)
    table.put(table.add_environment(HERE, BASELINES), "a", TIMING)
    table._db.execute(change)
    with pytest.raises(InputError, match=message) as raised:
        table.environments()
        environment = table.environment(HERE)
        table.entries(environment)
    assert str(path) in str(raised.value) and "name another with --table, or delete it" in str(raised.value)
    if "entries SET" in change:
        with pytest.raises(InputError, match=message):
            table.get(table.environment(HERE), "a")
    table.close()


DENSE_BLOCK, GATHER_BLOCK = '{"op":"residual"}', '{"op":"roi-pool"}'


def test_lower_baselines_correct_the_entries_of_their_reference(path):
    table = LatencyTable(path)
    old, there = table.add_environment(HERE, BASELINES), table.add_environment({**HERE, "threads": 2}, BASELINES)
    for environment in (old, there):
        for block in (DENSE_BLOCK, GATHER_BLOCK):
            table.put(environment, block, TIMING)
    new = table.lower_baselines(old, {"dense": 0.25, "gather": 0.5})
    assert new.baselines == {"dense": 0.25, "gather": 0.25} and table.environment(HERE) == new
    halved = Timing(TIMING.median_ms / 2, TIMING.min_ms / 2, TIMING.spread, TIMING.count)
    assert table.entries(new) == {DENSE_BLOCK: halved, GATHER_BLOCK: TIMING}
    assert table.entries(there) == {DENSE_BLOCK: TIMING, GATHER_BLOCK: TIMING}, "another environment"
    assert table.lower_baselines(old, {"dense": 0.25, "gather": 0.5}) == new and table.entries(new)[DENSE_BLOCK] == halved, "once"
    assert not table.put(old, "late", TIMING) and table.get(new, "late") is None, "measured against the old baselines"
    assert table.put(new, "late", TIMING) and table.get(new, "late") == TIMING
    table.close()


def test_a_correction_that_fails_changes_nothing(path):
    table = LatencyTable(path)
    environment = table.add_environment(HERE, BASELINES)
    table.put(environment, DENSE_BLOCK, TIMING)
    table.put(environment, "{no block", TIMING)
    with pytest.raises(InputError, match="'{no block' is no block.*delete it"):
        table.lower_baselines(environment, {"dense": 0.25, "gather": 0.25})
    assert table.environment(HERE) == environment and table.get(environment, DENSE_BLOCK) == TIMING
    table.close()


def test_places_that_cannot_hold_a_table(tmp_path):
    with pytest.raises(InputError, match="cannot read the latency table.*fastnas bench-latency"):
        LatencyTable(tmp_path / "none.db", writable=False)
    with pytest.raises(InputError, match="latency table"):
        LatencyTable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot create the latency table"):
        LatencyTable(tmp_path / "file" / "latency.db")
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_default_path(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTNAS_CACHE", str(tmp_path / "own"))
    assert default_path() == tmp_path / "own" / "latency.db"
    monkeypatch.delenv("FASTNAS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "fastnas" / "latency.db"


def test_networks_are_kept_with_what_they_drift_with(tmp_path):
    table = LatencyTable(tmp_path / "latency.db")
    environment = table.add_environment({"engine": "test"}, {"dense": 1.0, "gather": 2.0})
    timing = Timing(8.0, 7.5, 0.01, 9)
    assert table.networks(environment) == {}
    assert table.put_network(environment, "a network", timing, {"dense": 3.0, "gather": 1.0})
    assert table.networks(environment) == {"a network": (timing, {"dense": 3.0, "gather": 1.0})}
    lowered = table.lower_baselines(environment, {"dense": 0.8, "gather": 2.0})
    found, _ = table.networks(lowered)["a network"]
    assert found.median_ms == pytest.approx(8.0 * (0.75 * 0.8 + 0.25)) and found.count == 9
    assert not table.put_network(environment, "late", timing, {"dense": 1.0}), "measured against baselines that are gone"


def test_a_table_of_schema_1_is_upgraded_where_it_may_be_written(tmp_path):
    path = tmp_path / "latency.db"
    table = LatencyTable(path)
    environment = table.add_environment({"engine": "test"}, {"dense": 1.0, "gather": 2.0})
    table.close()
    with closing(sqlite3.connect(path)) as db:
        db.executescript("DROP TABLE networks; PRAGMA user_version=1")
    reading = LatencyTable(path, writable=False)
    assert reading.networks(environment) == {}
    reading.close()
    writing = LatencyTable(path)
    assert writing.put_network(environment, "a network", Timing(1.0, 1.0, 0.0, 9), {"dense": 1.0})
    writing.close()
    again = LatencyTable(path, writable=False)
    assert list(again.networks(environment)) == ["a network"]
    again.close()
