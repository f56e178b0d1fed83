"""The latency table: measured blocks of one or more environments in one SQLite file.

WAL journal and synchronous=FULL: an entry is durable when `put` returns, whatever happens to the process afterwards, and
readers see a consistent table while one process writes. Times are milliseconds.
"""

import hashlib
import json
import math
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastnas.errors import FastnasError, InputError
from fastnas.files import cache_folder, fsync_dir, fsync_file
from fastnas.latency.schema import ADDED, APPLICATION, ENTRIES, VERSION
from fastnas.latency.timing import REFERENCES, Timing, lowered, reference_of

_MAGIC = b"SQLite format 3\0"
_DAMAGE = sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB  # the first: a table or column is missing
_WAIT_S = 20  # for another process that is writing


def default_path() -> Path:
    """`latency.db` in the user's cache folder."""
    return cache_folder() / "latency.db"


@dataclass(frozen=True)
class Environment:
    """One row of `environments`."""

    id: int
    baselines: dict[str, float]  # milliseconds by reference
    stored: str  # the baselines as the table holds them


class LatencyTable:
    """An open table. Raises InputError for a file that is no latency table or was written by a newer fastnas."""

    def __init__(self, path: Path | str, writable: bool = True):
        self.path = Path(path)
        if writable and not self.path.exists():
            _create(self.path)
        _check_header(self.path)
        address = f"{self.path.absolute().as_uri()}?mode={'rw' if writable else 'ro'}"
        try:
            self._db = sqlite3.connect(address, uri=True, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from None
        try:
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]  # the log may be ahead of the header
            self._db.execute("SELECT count(*) FROM environments").fetchone()
        except sqlite3.Error as error:
            self.close()
            raise _unusable(self.path, error) from None
        if version > VERSION:
            self.close()
            raise _newer(self.path, version)
        self._version = version
        if version < VERSION and writable:
            self._upgrade()

    def _upgrade(self) -> None:
        """Adds the tables of later schemas. Another process may do the same at the same moment."""
        with self.transaction():
            for version in range(self._version + 1, VERSION + 1):
                self._query(ADDED[version].replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS"))
            self._query(f"PRAGMA user_version={VERSION}")
        self._version = VERSION

    def close(self) -> None:
        self._db.close()

    def check(self) -> None:
        """Reads the whole file. Raises InputError where SQLite finds it damaged."""
        found = [row[0] for row in self._query("PRAGMA integrity_check(1)")]
        if found != ["ok"]:
            raise self.damaged("; ".join(map(str, found)))

    def environment(self, description: dict) -> Environment | None:
        """The row of this environment, None where nothing was measured in it."""
        _, digest = _canonical(description)
        rows = self._query("SELECT id, baselines FROM environments WHERE hash = ?", digest)
        return Environment(rows[0][0], self._baselines(rows[0][1]), rows[0][1]) if rows else None

    def add_environment(self, description: dict, baselines: dict[str, float]) -> Environment:
        """Adds the environment; where another process was first, its row stays and is returned."""
        (text, digest), stored = _canonical(description), json.dumps(baselines)
        insert = "INSERT OR IGNORE INTO environments (hash, description, baselines) VALUES (?, ?, ?) RETURNING id"
        added = self._query(insert, digest, text, stored)
        return Environment(added[0][0], baselines, stored) if added else self.environment(description)

    def lower_baselines(self, environment: Environment, measured: dict[str, float]) -> Environment:
        """Corrects baselines that were taken on a busy machine (`lowered`), and with them all entries measured against them.

        An entry is its block's time over its reference's, times the baseline: new over old makes it what it would have been.
        """
        with self.transaction():
            [[text]] = self._query("SELECT baselines FROM environments WHERE id = ?", environment.id)
            stored = self._baselines(text)
            baselines = lowered(stored, measured)
            for block in self.entries(environment):
                name = self.reference(block)
                factor = baselines[name] / stored[name]
                update = "UPDATE entries SET median_ms = median_ms * ?, min_ms = min_ms * ? WHERE environment = ? AND block = ?"
                self._query(update, factor, factor, environment.id, block)
            for network, (_, mix) in self.networks(environment).items():
                factor = mixed_factor({name: baselines[name] / stored[name] for name in mix}, mix)
                update = "UPDATE networks SET median_ms = median_ms * ?, min_ms = min_ms * ? WHERE environment = ? AND text = ?"
                self._query(update, factor, factor, environment.id, network)
            text = json.dumps(baselines)
            self._query("UPDATE environments SET baselines = ? WHERE id = ?", text, environment.id)
        return Environment(environment.id, baselines, text)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside becomes durable together, or nothing of it. May be nested."""
        if self._db.in_transaction:
            yield
            return
        self._query("BEGIN IMMEDIATE")
        try:
            yield
            self._query("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.rollback()

    def environments(self) -> list[dict]:
        """Descriptions of all environments, each with its number of `entries`."""
        rows = self._query(
            "SELECT description, (SELECT count(*) FROM entries WHERE environment = id) FROM environments ORDER BY id"
        )
        return [{**self._object(text, "a description"), "entries": count} for text, count in rows]

    def put(self, environment: Environment, block: str, timing: Timing) -> bool:
        """Stores one entry, in place of an older one. Durable when this returns.

        False where nothing was stored because another process has lowered the baselines that `environment` holds.
        """
        insert = "INSERT OR REPLACE INTO entries SELECT id, ?, ?, ?, ?, ?, ? FROM environments WHERE id = ? AND baselines = ?"
        values = timing.median_ms, timing.min_ms, timing.spread, timing.count, _now()
        return bool(self._query(f"{insert} RETURNING block", block, *values, environment.id, environment.stored))

    def put_all(self, environment: Environment, entries: Mapping[str, Timing]) -> None:
        """Stores many entries by block key, all or none of them, in the order of the keys: the table is built without gaps."""
        rows = ((environment.id, key, t.median_ms, t.min_ms, t.spread, t.count, _now()) for key, t in sorted(entries.items()))
        with self.transaction():
            try:
                self._db.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            except sqlite3.Error as error:
                raise FastnasError(f"the latency table {self.path} failed: {error}") from None

    def get(self, environment: Environment, block: str) -> Timing | None:
        query = "SELECT median_ms, min_ms, spread, count FROM entries WHERE environment = ? AND block = ?"
        rows = self._query(query, environment.id, block)
        return self._entry(*rows[0]) if rows else None

    def entries(self, environment: Environment) -> dict[str, Timing]:
        """All entries of an environment by block key."""
        rows = self._query("SELECT block, median_ms, min_ms, spread, count FROM entries WHERE environment = ?", environment.id)
        return {block: self._entry(*values) for block, *values in rows}

    def matching(self, environment: Environment, pattern: str) -> dict[str, float]:
        """Median milliseconds by block key, of the keys that match an SQLite GLOB pattern."""
        query = "SELECT block, median_ms FROM entries WHERE environment = ? AND block GLOB ?"
        return dict(self._query(query, environment.id, pattern))

    def count(self, environment: Environment) -> int:
        """How many entries an environment has."""
        return self._query("SELECT count(*) FROM entries WHERE environment = ?", environment.id)[0][0]

    def put_failure(self, environment: Environment, block: str, message: str) -> None:
        """Records that the engine cannot run a block, in its own words."""
        insert = "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?)"
        self._query(insert, environment.id, block, message, _now())

    def drop_failure(self, environment: Environment, block: str) -> None:
        """Forgets a failure: the block is about to be tried again, or was measured."""
        self._query("DELETE FROM failures WHERE environment = ? AND block = ?", environment.id, block)

    def failures(self, environment: Environment) -> dict[str, str]:
        """Messages by block key."""
        if self._version < 3:
            return {}
        return dict(self._query("SELECT block, message FROM failures WHERE environment = ?", environment.id))

    def put_network(self, environment: Environment, text: str, timing: Timing, mix: Mapping[str, float]) -> bool:
        """Stores a network that was measured whole, as `put` stores a block. mix: milliseconds that drift with each reference."""
        insert = "INSERT OR REPLACE INTO networks SELECT id, ?, ?, ?, ?, ?, ?, ? FROM environments WHERE id = ? AND baselines = ?"
        values = timing.median_ms, timing.min_ms, timing.spread, timing.count, _now(), json.dumps(dict(mix))
        return bool(self._query(f"{insert} RETURNING text", text, *values, environment.id, environment.stored))

    def networks(self, environment: Environment) -> dict[str, tuple[Timing, dict[str, float]]]:
        """Networks measured whole, by text: their timing, and the milliseconds in them that drift with each reference."""
        if self._version < 2:
            return {}
        query = "SELECT text, median_ms, min_ms, spread, count, mix FROM networks WHERE environment = ? ORDER BY text"
        return {
            text: (self._entry(*values), self._mix(mix)) for text, *values, mix in self._query(query, environment.id)
        }

    def _mix(self, text) -> dict[str, float]:
        mix = self._object(text, "a mix")
        if set(mix) - set(REFERENCES) or not all(_is_number(v) and v >= 0 for v in mix.values()) or sum(mix.values()) <= 0:
            raise self.damaged(f"a mix is {text!r}")
        return mix

    def damaged(self, what: str) -> InputError:
        """What to raise for content that fastnas cannot have written."""
        return InputError(f"the latency table {self.path} is damaged: {what} (name another with --table, or delete it)")

    def _entry(self, median_ms, min_ms, spread, count) -> Timing:
        positive = _is_number(median_ms) and _is_number(min_ms) and median_ms > 0 and min_ms > 0
        if not (positive and _is_number(spread) and spread >= 0 and isinstance(count, int) and count > 0):
            raise self.damaged(f"an entry holds {(median_ms, min_ms, spread, count)!r} for median_ms, min_ms, spread, count")
        return Timing(median_ms, min_ms, spread, count)

    def _baselines(self, text) -> dict[str, float]:
        baselines = self._object(text, "baselines")
        if not all(_is_number(value) and value > 0 for value in baselines.values()):
            raise self.damaged(f"baselines are {text!r}")
        return baselines

    def reference(self, block: str) -> str:
        try:
            return reference_of(block)
        except (ValueError, KeyError, TypeError):
            raise self.damaged(f"{block!r} is no block") from None

    def _object(self, text, what: str) -> dict:
        try:
            found = json.loads(text)
        except (ValueError, TypeError):
            found = None
        if not isinstance(found, dict):
            raise self.damaged(f"{what} is {text!r}, no JSON object")
        return found

    def _query(self, statement: str, *values) -> list[tuple]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) in _DAMAGE or "UTF-8" in str(error):
                raise self.damaged(str(error)) from None
            raise FastnasError(f"the latency table {self.path} failed: {error}") from None


def mixed_factor(factors: Mapping[str, float], mix: Mapping[str, float]) -> float:
    """What a network's time is multiplied by when its references' are: the mean, weighted by the milliseconds of each."""
    return sum(share * factors[name] for name, share in mix.items()) / sum(mix.values())


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _canonical(description: dict) -> tuple[str, str]:
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return text, hashlib.sha256(text.encode()).hexdigest()


def _create(path: Path) -> None:
    """A new empty table: made beside `path`, then linked there, so that nobody ever opens half of one."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        db = sqlite3.connect(temporary)
        db.executescript(f"PRAGMA application_id={APPLICATION}; PRAGMA user_version={VERSION}; {ENTRIES}{''.join(ADDED.values())}")
        db.execute("PRAGMA journal_mode=WAL")
        db.close()
        fsync_file(Path(temporary))
        os.chmod(temporary, 0o644)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process was first: its table is as good
        fsync_dir(path.parent)
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot create the latency table {path}: {reason} (name another file or set FASTNAS_CACHE)") from None
    finally:
        for suffix in ("", "-wal", "-shm") if temporary else ():
            Path(temporary + suffix).unlink(missing_ok=True)


def _check_header(path: Path) -> None:
    """Refuses other files before SQLite touches them."""
    try:
        with open(path, "rb") as handle:
            header = handle.read(72)
    except OSError as error:
        hint = " (fill one with: fastnas bench-latency)" if isinstance(error, FileNotFoundError) else ""
        raise InputError(f"cannot read the latency table {path}: {error.strerror}{hint}") from None
    if len(header) < 72 or not header.startswith(_MAGIC) or int.from_bytes(header[68:72], "big") != APPLICATION:
        raise InputError(f"{path} is no latency table: name another file (it was left as it is)")
    if (version := int.from_bytes(header[60:64], "big")) > VERSION:
        raise _newer(path, version)


def _unusable(path: Path, error: sqlite3.Error) -> InputError:
    return InputError(f"cannot open the latency table {path}: {error} (check its permissions, or name another file)")


def _newer(path: Path, version: int) -> InputError:
    return InputError(f"the latency table {path} has schema {version}, this fastnas reads up to {VERSION}: update fastnas")
