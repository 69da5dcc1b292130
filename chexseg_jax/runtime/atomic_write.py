"""Files that are whole or not there, and what is said when a disk is full, read-only or damaged."""

import errno
import os
import platform
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
    errno.EIO: "see to that disk",
}
"""What a disk may answer to a write, and what helps."""


class WriteError(OSError):
    """A file could not be written: where, why, and what to do."""


class CorruptFile(OSError):
    """A file of a finished stage is cut short or gone: which, and what to do."""

    @classmethod
    def at(cls, path: Path, what: str) -> "Damaged":
        """Returns the error for one file."""
        return cls(f"{path}: {what}; delete {path.parent} and run the same command again")


def _answer(error: Exception) -> int | None:
    """Returns what the disk answered, if that is what an error is about."""
    if isinstance(error, OSError):
        return error.errno if error.errno in REMEDIES else None
    # ArrayRecord and TensorStore raise other kinds, with the same words in them.
    return next((number for number in REMEDIES if os.strerror(number) in str(error)), None)


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Says of a write in here that fails for want of a disk where it was and what to do.

    Of a folder, the file in it where the error names one.

    Raises:
        NotWritten: in place of whatever the writer raises.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        answer = None if isinstance(error, WriteError) else _answer(error)
        if answer is None:
            raise
        known = getattr(error, "filename", None) if path.is_dir() else None
        raise WriteError(
            f"{known or path}: {os.strerror(answer)}; {REMEDIES[answer]} and run the same command "
            "again: what was finished is kept"
        ) from error


def _owner(pid: int | str) -> str:
    return f"{platform.node().replace('.', '_')}-{pid}"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a path to write to; what is there becomes `path` at the end, at once or not at all.

    Raises:
        NotWritten: the disk is full or read-only.
    """
    aside = path.with_name(f".{path.name}.{_owner(os.getpid())}.part")
    with explain_write_errors(path):
        try:
            yield aside
            _sync(aside)
            aside.replace(path)
            _sync(path.parent)  # the name too is to survive a loss of power
        finally:
            aside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_stale_parts(folder: Path, *, all_hosts: bool = False) -> None:
    """Deletes what killed processes left half written.

    A process that runs keeps its own, and so do those of other hosts that share the disk, unless
    `all_hosts` says that nobody is writing here any more.
    """
    for left in folder.glob(".*.part" if all_hosts else f".*.{_owner('*')}.part"):
        pid = left.name.removesuffix(".part").rpartition("-")[2]
        if all_hosts or not _lives(pid):
            left.unlink(missing_ok=True)


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
