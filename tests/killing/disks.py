"""Fill the disk, or make it read-only, in every stage of a run; mounting needs root.

The work folder is a file system of its own in memory. Its free space is a random part of what the stage
needs. It is read-only from the start, because a run that holds its lock prevents a remount.
"""

import os
import random
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.killing.digests import differences, digests_of
from tests.killing.processes import finish
from tests.killing.stages import copy_up_to, delete_from, is_finished, start_run

AMPLE: Final = 2**30
"""Bytes of the disk when it is not full."""

MESSAGES: Final = {"full": "No space left on device", "read-only": "Read-only file system"}


@dataclass
class DiskCounts:
    """What happened to one stage."""

    full: int = 0  # runs that ended for lack of space
    read_only: int = 0
    fitted: int = 0  # runs that finished in the space they had
    compared: int = 0
    mismatches: list[str] = field(default_factory=list)


def mount(folder: Path, options: str) -> bool:
    """Mount or remount a file system in memory; return whether it succeeded."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def used_bytes(folder: Path) -> int:
    """Return the bytes in use on a folder's file system."""
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def error_in_log(log: str, path: Path, message: str) -> str:
    """Return what is wrong with a run's report of its disk, an empty string if nothing is."""
    if "Traceback (most" in log:
        return "a traceback"
    if not any(message in line and str(path) in line for line in log.splitlines()):
        return f"no sentence of {message!r} with the path"
    return ""


def break_disk(stage: str, times: int, base: Path, rng: random.Random) -> DiskCounts:
    """Run a stage `times` times on a full disk and once on a read-only one; resume each run."""
    counts, workdir = DiskCounts(), base / f"disk-{stage}"
    workdir.mkdir()
    if not mount(workdir, f"size={AMPLE}"):
        raise SystemExit(
            f"{workdir}: nothing can be mounted there; run as root, or leave --disks out"
        )
    try:
        _break_disk(counts, workdir, stage, times, base, rng)
    finally:
        subprocess.run(["umount", str(workdir)], check=False)
    if not counts.mismatches:
        workdir.rmdir()
    return counts


def _break_disk(
    counts: DiskCounts, workdir: Path, stage: str, times: int, base: Path, rng: random.Random
) -> None:
    copy_up_to(stage, base, workdir)
    maximum, expected = used_bytes(workdir), digests_of(workdir)
    delete_from(workdir, stage)
    earlier = digests_of(workdir)
    minimum = used_bytes(workdir)
    log = base / f"{workdir.name}.log"
    for kind in (*["full"] * times, "read-only"):
        log.unlink(missing_ok=True)
        size = minimum + int(rng.random() * (maximum - minimum)) + 1
        mount(workdir, f"remount,size={size}" if kind == "full" else "remount,ro")
        code = finish(start_run(workdir, base, stage))
        mount(workdir, f"remount,rw,size={AMPLE}")
        if is_finished(workdir, stage) and code == 0:
            counts.fitted += 1
        else:
            counts.full += kind == "full"
            counts.read_only += kind == "read-only"
            error = error_in_log(log.read_text(), workdir, MESSAGES[kind])
            counts.mismatches += [f"{kind}: ended with {code}"] if code != 1 else []
            counts.mismatches += [f"{kind}: {error}"] if error else []
        unchanged = {n: digest for n, digest in digests_of(workdir).items() if n in earlier}
        counts.mismatches += differences(unchanged, earlier)
        if counts.mismatches:
            return
        if code := finish(start_run(workdir, base, stage)):
            counts.mismatches.append(f"the resumed run ended with {code}")
            return
        counts.mismatches += differences(digests_of(workdir), expected)
        counts.compared += 1
        delete_from(workdir, stage)
