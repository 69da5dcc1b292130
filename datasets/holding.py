"""Locks that die with their process, however it ends."""

import fcntl
from pathlib import Path
from typing import IO


def hold(path: Path) -> IO[str] | None:
    """Locks a file, made if need be, until what is returned is closed; None if it is held elsewhere."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
