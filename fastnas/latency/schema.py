"""The schema of a latency table."""

APPLICATION = 0x466E4C74  # "FnLt", in bytes 68 to 71 of the file
VERSION = 3  # of the schema, in bytes 60 to 63

ENTRIES = """
CREATE TABLE environments (
    id INTEGER PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,          -- SHA-256 of description
    description TEXT NOT NULL,          -- canonical JSON: engine, version, device, precision, ...; protocol or imported
    baselines TEXT NOT NULL             -- JSON: milliseconds of each reference of fastnas.latency.timing there; {}: imported
);
CREATE TABLE entries (
    environment INTEGER NOT NULL REFERENCES environments(id),
    block TEXT NOT NULL,                -- Spec.key(input shapes), of a block or an operator: canonical JSON
    median_ms REAL NOT NULL CHECK (median_ms > 0),
    min_ms REAL NOT NULL,
    spread REAL NOT NULL,
    count INTEGER NOT NULL,
    measured_at TEXT NOT NULL,          -- UTC, ISO 8601
    PRIMARY KEY (environment, block)
) WITHOUT ROWID;
"""
NETWORKS = """
CREATE TABLE networks (                 -- measured whole, for the calibration; since schema 2
    environment INTEGER NOT NULL REFERENCES environments(id),
    text TEXT NOT NULL,                 -- one-line form of the blueprint
    median_ms REAL NOT NULL CHECK (median_ms > 0),
    min_ms REAL NOT NULL,
    spread REAL NOT NULL,
    count INTEGER NOT NULL,
    measured_at TEXT NOT NULL,
    mix TEXT NOT NULL,                  -- JSON: milliseconds in it that drift with each reference
    PRIMARY KEY (environment, text)
) WITHOUT ROWID;
"""
FAILURES = """
CREATE TABLE failures (                 -- blocks that the engine cannot run; since schema 3
    environment INTEGER NOT NULL REFERENCES environments(id),
    block TEXT NOT NULL,                -- Spec.key(input shapes)
    message TEXT NOT NULL,              -- the engine's own
    failed_at TEXT NOT NULL,            -- UTC, ISO 8601
    PRIMARY KEY (environment, block)
) WITHOUT ROWID;
"""
ADDED = {2: NETWORKS, 3: FAILURES}  # what each version added to the one before
