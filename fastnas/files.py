"""Writing files so that a crash leaves either the old content or the new one, never half of one."""

import contextlib
import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache folder for fastnas: FASTNAS_CACHE, else XDG_CACHE_HOME/fastnas, else ~/.cache/fastnas."""
    if own := os.environ.get("FASTNAS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastnas"


def fsync_dir(folder: Path) -> None:
    """Makes renames and new names inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Makes the content of an existing file durable."""
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


def write_atomic(path: Path | str, content: bytes | str) -> None:
    """Writes `content` to a temporary file beside `path`, fsyncs it and renames it over `path`."""
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_dir(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
