"""Atomic file writes, and error messages for full, read-only or corrupt disks."""

import errno
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

REMEDIES: Final = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there",
    errno.EFBIG: "allow larger files",
    errno.EACCES: "give this user the right to it",
    errno.EROFS: "make it writable",
    errno.EIO: "check that disk",
}
"""Errors of a write that a user can fix, and how."""


class WriteError(OSError):
    """A file could not be written: which, why, and the remedy."""


class CorruptFile(OSError):
    """A file of a finished stage is truncated or missing: which, and the remedy."""

    @classmethod
    def at(cls, path: Path, what: str) -> "CorruptFile":
        """Return the error for one file."""
        return cls(f"{path}: {what}; delete {path.parent} and run the same command again")


def _write_errno(error: Exception) -> int | None:
    """Return which of `REMEDIES` an error is, None if it is another."""
    if isinstance(error, OSError):
        return error.errno if error.errno in REMEDIES else None
    # ArrayRecord and TensorStore raise other types whose text contains the system's message.
    return next((number for number in REMEDIES if os.strerror(number) in str(error)), None)


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn errors of the disk into a `WriteError` with the path, the reason and the remedy.

    If the path is a folder and the error names a file in it, that file is reported.

    Raises:
        WriteError: in place of what the writer raises.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        number = None if isinstance(error, WriteError) else _write_errno(error)
        if number is None:
            raise
        filename = getattr(error, "filename", None) if path.is_dir() else None
        raise WriteError(
            f"{filename or path}: {os.strerror(number)}; {REMEDIES[number]} and run the same command "
            "again: what was finished is kept"
        ) from error


def _owner(pid: int | str) -> str:
    return f"{platform.node().replace('.', '_')}-{pid}"


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_owner(os.getpid())}.part")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; at the end sync it and rename it to `path`.

    Raises:
        WriteError: the disk is full or read-only.
    """
    aside = _temporary(path)
    with explain_write_errors(path):
        try:
            yield aside
            _sync(aside)
            aside.replace(path)
            _sync(path.parent)  # the new name must survive a power failure too
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; at the end rename it to `path`, which may be an empty folder."""
    aside = _temporary(path)
    aside.mkdir(parents=True)
    try:
        yield aside
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_stale_parts(folder: Path, *, all_hosts: bool = False) -> None:
    """Delete temporary files that killed processes left behind.

    Files of living processes and of other hosts that share the disk stay, unless `all_hosts` says that
    nobody writes to the folder any more.
    """
    for part in folder.glob(".*.part" if all_hosts else f".*.{_owner('*')}.part"):
        pid = part.name.removesuffix(".part").rpartition("-")[2]
        if all_hosts or not _is_alive(pid):
            part.unlink(missing_ok=True)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
