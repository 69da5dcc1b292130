"""Disks that fill up, or are read-only, in every stage of a run; only root may mount what it needs.

A work folder lies on a disk of its own in memory. Its room is a random part of what the stage needs. It
is read-only from the start: while a run holds its lock, nothing can make it so.
"""

import os
import random
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.killing.digests import look
from tests.killing.lives import finish
from tests.killing.stages import copy_up_to, differing, done, life, undo

ROOMY: Final = 2**30
"""Bytes on the disk when there is room."""

SAID: Final = {"full": "No space left on device", "read-only": "Read-only file system"}


@dataclass
class Refused:
    """What happened to one stage."""

    full: int = 0  # lives that found no room
    read_only: int = 0
    fitted: int = 0  # lives that ended all the same
    compared: int = 0
    mismatches: list[str] = field(default_factory=list)


def mount(folder: Path, options: str) -> bool:
    """Mounts a disk in memory, or changes one; returns whether it could."""
    asked = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def used(folder: Path) -> int:
    """Returns the bytes taken on the disk of a folder."""
    told = os.statvfs(folder)
    return (told.f_blocks - told.f_bfree) * told.f_frsize


def sentence(said: str, path: Path, why: str) -> str:
    """Returns what is wrong with what a life said of its disk; nothing if nothing is."""
    if "Traceback (most" in said:
        return "a traceback"
    if not any(why in line and str(path) in line for line in said.splitlines()):
        return f"no sentence of {why!r} with the path"
    return ""


def torment(stage: str, times: int, base: Path, chance: random.Random) -> Refused:
    """Takes the room away so many times, and once the right to write; each life then goes on."""
    refused, workdir = Refused(), base / f"disk-{stage}"
    workdir.mkdir()
    if not mount(workdir, f"size={ROOMY}"):
        raise SystemExit(
            f"{workdir}: nothing can be mounted there; run as root, or leave --disks out"
        )
    try:
        _torment(refused, workdir, stage, times, base, chance)
    finally:
        subprocess.run(["umount", str(workdir)], check=False)
    if not refused.mismatches:
        workdir.rmdir()
    return refused


def _torment(
    refused: Refused,
    workdir: Path,
    stage: str,
    times: int,
    base: Path,
    chance: random.Random,
) -> None:
    copy_up_to(stage, base, workdir)
    taken, expected = used(workdir), look(workdir)
    undo(workdir, stage)
    kept = look(workdir)
    least = used(workdir)
    said = base / f"{workdir.name}.log"
    for why in (*["full"] * times, "read-only"):
        said.unlink(missing_ok=True)
        room = least + int(chance.random() * (taken - least)) + 1
        mount(workdir, f"remount,size={room}" if why == "full" else "remount,ro")
        code = finish(life(workdir, base, stage))
        mount(workdir, f"remount,rw,size={ROOMY}")
        if done(workdir, stage) and code == 0:
            refused.fitted += 1
        else:
            refused.full += why == "full"
            refused.read_only += why == "read-only"
            wrong = sentence(said.read_text(), workdir, SAID[why])
            refused.mismatches += [f"{why}: ended with {code}"] if code != 1 else []
            refused.mismatches += [f"{why}: {wrong}"] if wrong else []
        earlier = {name: found for name, found in look(workdir).items() if name in kept}
        refused.mismatches += differing(earlier, kept)
        if refused.mismatches:
            return
        if code := finish(life(workdir, base, stage)):
            refused.mismatches.append(f"going on ended with {code}")
            return
        refused.mismatches += differing(look(workdir), expected)
        refused.compared += 1
        undo(workdir, stage)
