"""The latency table: measured blocks of one or more environments in one SQLite file.

WAL journal and synchronous=FULL: an entry is durable when `put` returns, whatever happens to the process afterwards, and
readers see a consistent table while one process writes. Times are milliseconds.
"""

import hashlib
import json
import os
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fastnas.errors import FastnasError, InputError
from fastnas.files import fsync_dir, fsync_file
from fastnas.latency.timing import Timing

APPLICATION = 0x466E4C74  # "FnLt", in bytes 68 to 71 of the file
VERSION = 1  # of the schema, in bytes 60 to 63
_MAGIC = b"SQLite format 3\0"
_WAIT_S = 20  # for another process that is writing
_SCHEMA = """
CREATE TABLE environments (
    id INTEGER PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,          -- SHA-256 of description
    description TEXT NOT NULL,          -- canonical JSON: engine, version, device, precision, batch, threads, settings, protocol
    baselines TEXT NOT NULL             -- JSON: milliseconds of each reference of fastnas.latency.timing on this device
);
CREATE TABLE entries (
    environment INTEGER NOT NULL REFERENCES environments(id),
    block TEXT NOT NULL,                -- Spec.key(input shapes): canonical JSON
    median_ms REAL NOT NULL CHECK (median_ms > 0),
    min_ms REAL NOT NULL,
    spread REAL NOT NULL,
    count INTEGER NOT NULL,
    measured_at TEXT NOT NULL,          -- UTC, ISO 8601
    PRIMARY KEY (environment, block)
) WITHOUT ROWID;
"""


def default_path() -> Path:
    """`latency.db` in FASTNAS_CACHE, else in the user's cache folder."""
    if folder := os.environ.get("FASTNAS_CACHE"):
        return Path(folder) / "latency.db"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastnas" / "latency.db"


@dataclass(frozen=True)
class Environment:
    """One row of `environments`."""

    id: int
    baselines: dict[str, float]  # milliseconds by reference


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

    def close(self) -> None:
        self._db.close()

    def environment(self, description: dict) -> Environment | None:
        """The row of this environment, None where nothing was measured in it."""
        _, digest = _canonical(description)
        row = self._query("SELECT id, baselines FROM environments WHERE hash = ?", digest).fetchone()
        return Environment(row[0], json.loads(row[1])) if row else None

    def add_environment(self, description: dict, baselines: dict[str, float]) -> Environment:
        """Adds the environment; where another process was first, its row stays and is returned."""
        text, digest = _canonical(description)
        insert = "INSERT OR IGNORE INTO environments (hash, description, baselines) VALUES (?, ?, ?)"
        self._query(insert, digest, text, json.dumps(baselines))
        return self.environment(description)

    def environments(self) -> list[dict]:
        """Descriptions of all environments, each with its number of `entries`."""
        rows = self._query(
            "SELECT description, (SELECT count(*) FROM entries WHERE environment = id) FROM environments ORDER BY id"
        )
        return [{**json.loads(text), "entries": count} for text, count in rows]

    def put(self, environment: Environment, block: str, timing: Timing) -> None:
        """Stores one entry, in place of an older one. Durable when this returns."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        values = timing.median_ms, timing.min_ms, timing.spread, timing.count, now
        self._query("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", environment.id, block, *values)

    def get(self, environment: Environment, block: str) -> Timing | None:
        query = "SELECT median_ms, min_ms, spread, count FROM entries WHERE environment = ? AND block = ?"
        row = self._query(query, environment.id, block).fetchone()
        return Timing(*row) if row else None

    def entries(self, environment: Environment) -> dict[str, Timing]:
        """All entries of an environment by block key."""
        rows = self._query("SELECT block, median_ms, min_ms, spread, count FROM entries WHERE environment = ?", environment.id)
        return {block: Timing(*values) for block, *values in rows}

    def _query(self, statement: str, *values) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise FastnasError(f"the latency table {self.path} failed: {error}") from None


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
        db.executescript(f"PRAGMA application_id={APPLICATION}; PRAGMA user_version={VERSION}; {_SCHEMA}")
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
