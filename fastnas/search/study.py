"""A study: one search on disk, with everything needed to stop it, kill it, resume it and read it.

    study.db         SQLite (WAL, synchronous=FULL); the driver is its only writer, readers may look at any time
    config.yaml      the resolved configuration
    candidates/ID/   blueprint.json, weights.safetensors, metrics.jsonl, after the full training final.safetensors (or, after a
                     longer one, final-longer.safetensors: the shorter one stays until the longer one is done)

A candidate's files are written and fsynced before the row that names them is committed with their SHA-256, so a row never points
at half a file. Files without a row are removed when the study is opened for writing, and a candidate that was running then waits
again: nothing that finished is repeated, nothing that did not finish is counted.
"""

import dataclasses
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import yaml

from fastnas.blueprint import Blueprint, Lineage
from fastnas.errors import FastnasError, InputError
from fastnas.files import fsync_dir, fsync_file, write_atomic
from fastnas.search.record import FAILED, FINISHED, RUNNING, STATES, WAITING, Final, Record

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE candidates (
    id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, blueprint TEXT NOT NULL, lineage TEXT NOT NULL, state TEXT NOT NULL,
    params INTEGER NOT NULL, macs INTEGER NOT NULL, predicted_ms REAL, low_ms REAL, high_ms REAL,
    ap REAL, ap50 REAL, metrics TEXT NOT NULL DEFAULT '{}', epochs REAL NOT NULL DEFAULT 0, total_epochs REAL NOT NULL DEFAULT 0,
    seconds REAL NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', weights TEXT NOT NULL DEFAULT '', sha256 TEXT,
    created REAL NOT NULL, ended REAL);
CREATE TABLE finals (
    candidate INTEGER PRIMARY KEY REFERENCES candidates (id), ap REAL NOT NULL, ap50 REAL NOT NULL, metrics TEXT NOT NULL,
    latency_ms REAL, epochs REAL NOT NULL, seconds REAL NOT NULL, weights TEXT NOT NULL, sha256 TEXT NOT NULL,
    ended REAL NOT NULL);
"""
COLUMNS = "id, state, params, macs, predicted_ms, low_ms, high_ms, ap, ap50, epochs, total_epochs, seconds, reason, weights"
FINAL_COLUMNS = "candidate, metrics, ap, ap50, latency_ms, epochs, seconds, weights"
PRICE = ("predicted_ms", "low_ms", "high_ms")  # NULL, read as NaN, where the engine cannot run one of the blocks
DRAFT = ".study.db.draft"
UNREADABLE = (sqlite3.DatabaseError, TypeError, ValueError, LookupError, AttributeError, InputError)  # what reading a row may raise
DAMAGE = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)


class Study:
    """Use as a context manager; made by `Study.create` and `Study.open`."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock=None):
        self.folder, self._db, self._lock = folder, connection, lock

    def __enter__(self) -> "Study":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()
        if self._lock:
            self._lock.close()

    # making and opening

    @staticmethod
    def create(folder: Path | str, space: str, config: dict[str, Any]) -> "Study":
        """Makes a new study for writing. Raises InputError if the folder is not empty or cannot be written."""
        folder = Path(folder)
        Study.check_free(folder)
        try:
            (folder / "candidates").mkdir(parents=True, exist_ok=True)
            lock = _lock(folder)
            if (folder / "study.db").exists():  # made by another process since the check above
                lock.close()
                Study.check_free(folder)
            write_atomic(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        except OSError as error:
            raise InputError(f"cannot write to {folder} ({error.strerror}): name another folder with --out") from None
        # The schema goes in before the file gets its name, so a study.db is always whole.
        draft = folder / DRAFT
        draft.unlink(missing_ok=True)
        db = sqlite3.connect(draft)
        with db:
            db.executescript(SCHEMA)
            meta = {"schema": SCHEMA_VERSION, "space": space, "config": config}
            db.executemany("INSERT INTO meta VALUES (?, ?)", [(key, json.dumps(value)) for key, value in meta.items()])
        db.close()
        fsync_file(draft)
        os.replace(draft, folder / "study.db")
        fsync_dir(folder)
        return Study(folder, _connect(folder), lock)

    @staticmethod
    def check_free(folder: Path) -> None:
        """Raises InputError unless a new study may be made in `folder`; writes nothing."""
        if (folder / "study.db").exists():
            raise InputError(f"{folder} already holds a study: go on with --resume, or name another folder with --out")
        if folder.exists() and not _is_free(folder):
            raise InputError(f"{folder} is not an empty folder: name another one with --out")
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(f"cannot write to {folder} (permission denied in {existing}): name another folder with --out")

    @staticmethod
    def open(folder: Path | str, write: bool = False) -> "Study":
        """Opens a study to read it, or to go on with it. Raises InputError if there is none or another process writes to it."""
        folder = Path(folder)
        if not (folder / "study.db").is_file():
            raise InputError(f"{folder} holds no study (no study.db): name the folder that a search was given as --out")
        study = Study(folder, _connect(folder, read_only=True))
        try:
            study._check()
        except BaseException:
            study.close()
            raise
        if not write:
            return study
        study.close()
        if (folder / "candidates").is_symlink() or not (folder / "candidates").is_dir():
            raise InputError(f"{folder / 'candidates'} is no folder of the study's own: put it back, or start a new study")
        lock = _lock(folder)
        study = Study(folder, _connect(folder), lock)
        study._recover()
        return study

    def _check(self) -> None:
        """Raises InputError unless this is a study of the known schema whose head can be read."""
        version = self._meta("schema")
        if version != SCHEMA_VERSION:
            known = f"this fastnas reads {SCHEMA_VERSION}: use the version that wrote it"
            raise InputError(f"{self.folder} has schema {version}, {known}")
        if not isinstance(self.space, str) or not isinstance(self.config, dict):
            raise self._damaged("it names no space or holds no configuration")

    def _recover(self) -> None:
        """Puts what was under way back in the queue and removes files that no row names."""
        with self._db:
            self._db.execute("UPDATE candidates SET state = ? WHERE state = ?", (WAITING, RUNNING))
        keep = {self.folder / weights for (weights,) in self._db.execute("SELECT weights FROM candidates WHERE weights != ''")}
        keep |= {self.folder / weights for (weights,) in self._db.execute("SELECT weights FROM finals")}
        ended = {id for (id,) in self._db.execute("SELECT id FROM candidates WHERE state IN (?, ?)", (FINISHED, FAILED))}
        for entry in (self.folder / "candidates").iterdir():
            if entry.is_symlink() or not entry.is_dir() or not re.fullmatch(r"\d+", entry.name, re.ASCII):
                continue  # not written by a study
            if int(entry.name) not in ended:
                shutil.rmtree(entry)
                continue
            for file in entry.iterdir():
                if file.suffix == ".tmp" or file.suffix == ".safetensors" and file not in keep:
                    file.unlink()

    # reading

    @property
    def space(self) -> str:
        return self._meta("space")

    @property
    def config(self) -> dict[str, Any]:
        return self._meta("config")

    @property
    def environment(self) -> dict[str, Any]:
        """The environment of the latencies, empty before the first price."""
        return self._meta("environment", {})

    @property
    def data_fingerprint(self) -> dict[str, str]:
        """SHA-256 of the annotation files that the study was begun with."""
        return self._meta("data", {})

    def _meta(self, key: str, default=None):
        try:
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
            return json.loads(row[0]) if row else default
        except UNREADABLE as error:
            raise self._damaged(f"entry {key!r}: {error}", error) from None

    def records(self) -> list[Record]:
        """All candidates in order of their ids. Raises InputError where a row cannot be read."""
        try:
            finals = {id: _final(*values) for id, *values in self._db.execute(f"SELECT {FINAL_COLUMNS} FROM finals")}
            rows = self._db.execute(f"SELECT blueprint, lineage, metrics, {COLUMNS} FROM candidates ORDER BY id").fetchall()
        except UNREADABLE as error:
            raise self._damaged(str(error), error) from None
        found = []
        for blueprint, lineage, metrics, *values in rows:
            try:
                found.append(_record(blueprint, lineage, metrics, values, finals.get(values[0])))
            except UNREADABLE as error:
                raise self._damaged(f"candidate {values[0]}: {error}", error) from None
        return found

    def _damaged(self, what: str, error: Exception | None = None) -> Exception:
        """The error for content that no search has written; another error of the database, such as a lock, is its own."""
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF not in DAMAGE:
            return error
        path = self.folder / "study.db"
        return InputError(f"{path} is no fastnas study or is damaged ({what}): restore it, or start a new study")

    def candidate_folder(self, id: int) -> Path:
        return self.folder / "candidates" / str(id)

    # writing, each call one durable transaction

    def set_meta(self, key: str, value: Any) -> None:
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def set_config(self, config: dict[str, Any]) -> None:
        """Replaces the configuration (a resumed study may be given more candidates)."""
        self.set_meta("config", config)
        write_atomic(self.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))

    def add(self, record: Record) -> Record:
        """Adds a candidate that waits or was rejected; `record.id` is replaced by the next free id."""
        return self.add_all([record])[0]

    def add_all(self, records: list[Record]) -> list[Record]:
        """Adds candidates together: all of them are in the study, or none."""
        with self._db:
            return [self._insert(record) for record in records]

    def _insert(self, record: Record) -> Record:
        blueprint, lineage = json.dumps(record.blueprint.to_dict()), json.dumps(record.lineage.to_dict())
        price = (record.predicted_ms, record.low_ms, record.high_ms)
        (id,) = self._db.execute("SELECT COALESCE(MAX(id) + 1, 0) FROM candidates").fetchone()
        self._db.execute(
            "INSERT INTO candidates (id, text, blueprint, lineage, state, params, macs, predicted_ms, low_ms, high_ms, reason,"
            " created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (id, record.blueprint.text, blueprint, lineage, record.state, record.params, record.macs, *price, record.reason)
            + (time.time(),),
        )
        return dataclasses.replace(record, id=id)

    def start(self, id: int) -> Path:
        """Marks a candidate as running and makes its folder with blueprint.json."""
        with self._db:
            self._db.execute("UPDATE candidates SET state = ? WHERE id = ?", (RUNNING, id))
        folder = self.candidate_folder(id)
        folder.mkdir(exist_ok=True)
        (blueprint,) = self._db.execute("SELECT blueprint FROM candidates WHERE id = ?", (id,)).fetchone()
        write_atomic(folder / "blueprint.json", json.dumps(json.loads(blueprint), indent=1))
        return folder

    def put_back(self, id: int) -> None:
        """A candidate that was interrupted waits again."""
        with self._db:
            self._db.execute("UPDATE candidates SET state = ? WHERE id = ? AND state = ?", (WAITING, id, RUNNING))

    def finish(self, id: int, metrics: dict[str, float], epochs: float, total_epochs: float, seconds: float, weights: Path) -> None:
        """Makes the files of a trained candidate durable, then commits its row."""
        digest = self._seal(weights)
        with self._db:
            self._db.execute(
                "UPDATE candidates SET state = ?, ap = ?, ap50 = ?, metrics = ?, epochs = ?, total_epochs = ?, seconds = ?,"
                " weights = ?, sha256 = ?, ended = ? WHERE id = ?",
                (FINISHED, metrics["ap"], metrics["ap50"], json.dumps(metrics), epochs, total_epochs, seconds)
                + (str(weights.relative_to(self.folder)), digest, time.time(), id),
            )

    def fail(self, id: int, reason: str, seconds: float) -> None:
        """Records that the training of a candidate failed, and why."""
        with self._db:
            self._db.execute(
                "UPDATE candidates SET state = ?, reason = ?, seconds = ?, ended = ? WHERE id = ?",
                (FAILED, reason, seconds, time.time(), id),
            )

    def finish_final(self, id: int, final: Final) -> None:
        """Records the full training of a candidate, in place of a shorter one; `final.weights` is relative to the study."""
        digest = self._seal(self.folder / final.weights)
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO finals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (id, final.ap, final.ap50, json.dumps(final.metrics), final.latency_ms, final.epochs, final.seconds)
                + (final.weights, digest, time.time()),
            )

    def _seal(self, weights: Path) -> str:
        """Fsyncs a candidate's folder; returns the hash of its weights."""
        for file in weights.parent.iterdir():
            fsync_file(file)
        fsync_dir(weights.parent)
        fsync_dir(weights.parent.parent)
        return _sha256(weights)

    def verified_weights(self, id: int) -> Path:
        """Path of a candidate's weights, after comparing them with the hash in the study. Raises FastnasError if they differ."""
        weights, digest = self._db.execute("SELECT weights, sha256 FROM candidates WHERE id = ?", (id,)).fetchone()
        path = self.folder / weights
        if not path.is_file() or _sha256(path) != digest:
            raise FastnasError(f"{path} is missing or was changed: candidate {id} cannot be a parent; start a new study")
        return path


def _record(blueprint: str, lineage: str, metrics: str, values: list, final: Final | None) -> Record:
    fields = dict(zip((name.strip() for name in COLUMNS.split(",")), values, strict=True))
    fields |= {name: math.nan for name in PRICE if fields[name] is None}
    for name, value in fields.items():
        if isinstance(value, str) != (name in ("state", "reason", "weights")) or isinstance(value, bytes):
            raise ValueError(f"{name} is {value!r}")
    if fields["state"] not in STATES:
        raise ValueError(f"state is {fields['state']!r}")
    read = Blueprint.from_dict(json.loads(blueprint)), Lineage.from_dict(json.loads(lineage)), _numbers(metrics)
    return Record(**fields, blueprint=read[0], lineage=read[1], metrics=read[2], final=final)


def _final(metrics: str, *values) -> Final:
    ap, ap50, latency, epochs, seconds, weights = values
    numbers = (ap, ap50, epochs, seconds, *([] if latency is None else [latency]))
    if not all(isinstance(value, (int, float)) for value in numbers) or not isinstance(weights, str):
        raise ValueError(f"a full training with {values}")
    return Final(ap, ap50, _numbers(metrics), latency, epochs, seconds, weights)


def _numbers(text: str) -> dict[str, float]:
    return {str(name): float(value) for name, value in json.loads(text).items()}


def _is_free(folder: Path) -> bool:
    """True for an empty folder, and for one where a search was killed before its study had begun."""
    if not folder.is_dir() or {entry.name for entry in folder.iterdir()} - {"candidates", "config.yaml", ".lock", DRAFT}:
        return False
    return not (folder / "candidates").exists() or not any((folder / "candidates").iterdir())


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _lock(folder: Path):
    """An exclusive lock that ends with the process, however that ends."""
    handle = open(folder / ".lock", "a+")  # noqa: SIM115 - it stays open as long as the study
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        owner = handle.read().strip() or "unknown"
        handle.close()
        raise InputError(f"another search (process {owner}) is writing to {folder}: wait for it or stop it") from None
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle


def _connect(folder: Path, read_only: bool = False) -> sqlite3.Connection:
    path = (folder / "study.db").resolve()
    db = sqlite3.connect(f"{path.as_uri()}?mode={'ro' if read_only else 'rw'}", uri=True, timeout=30)
    if not read_only:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
    return db
