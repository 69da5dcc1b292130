"""Kills in every stage of a run, from the phantoms to the report."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from experiments.chexseg import main
from tests.killing.lives import begin, ended, finish, kill_once

STAGES = (
    *("phantoms", "classify", "localize", "seed", "relate", "label", "segment", "evaluate"),
    "report",
)
TINY = (
    *("--phantoms.train=32", "--phantoms.valid=16", "--phantoms.test=8"),
    *("--phantoms.short-side=64", "--image-size=64", "--classify.network.blocks", *"2222"),
    *("--classify.batch-size=8", "--classify.epochs=4", "--classify.every=4"),
    *("--localize.batch-size=8", "--relate.radius=3", "--relate.every=2"),
    *("--segment.width=16", "--segment.epochs=4", "--segment.every=4", "--rho=0.9"),
)


@dataclass
class Counted:
    """What happened to one stage."""

    kills: int = 0
    lives: int = 0
    recoveries: list[float] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)


def folders(workdir: Path, stage: str) -> list[Path]:
    """Returns a stage's folders; the label stage has one for each kind of pseudo-mask."""
    return [path for path in workdir.glob(f"{stage}-*") if path.is_dir()]


def begun(workdir: Path, stage: str) -> bool:
    """Returns whether a stage has started."""
    if stage == "phantoms":
        return workdir.is_dir() and any(workdir.glob(".preparing-*"))
    if stage == "report":
        return done(workdir, "evaluate")
    return bool(folders(workdir, stage))


def done(workdir: Path, stage: str) -> bool:
    """Returns whether a stage is finished; the report is, when the last file of it is there."""
    if stage == "phantoms":
        return (workdir / "phantoms" / "phantom.json").exists()
    if stage == "report":
        return bool(list(workdir.glob("evaluate-*/report.html")))
    found = folders(workdir, stage)
    return bool(found) and all((path / "manifest.json").exists() for path in found)


def life(workdir: Path, base: Path) -> int:
    """Begins one life of the run; returns its process."""
    command = [f"--workdir={workdir}", *TINY]
    return begin(lambda: main(command), base / f"{workdir.name}.log", base / "cache")


def unbroken(workdir: Path, base: Path) -> dict[str, float]:
    """Runs without a kill and returns how long each stage took, seconds."""
    pid, first, last = life(workdir, base), {}, {}
    while (code := ended(pid)) is None:
        now = time.monotonic()
        for stage in STAGES:
            if stage not in first and begun(workdir, stage):
                first[stage] = now
            if stage in first and not done(workdir, stage):
                last[stage] = now
        time.sleep(0.002)
    if code:
        raise SystemExit((base / f"{workdir.name}.log").read_text())
    return {stage: max(0.02, last.get(stage, first[stage]) - first[stage]) for stage in STAGES}


def undo(workdir: Path, stage: str) -> None:
    """Deletes a stage and all that follow it."""
    for name in STAGES[STAGES.index(stage) :]:
        if name == "report":
            for path in workdir.glob("evaluate-*/report.*"):
                path.unlink()
            continue
        for path in [workdir / name, *folders(workdir, name)]:
            shutil.rmtree(path, ignore_errors=True)


def torment(
    stage: str,
    kills: int,
    whole: Path,
    base: Path,
    span: float,
    chance: random.Random,
    look: Callable[[Path], dict[str, str]],
    expected: dict[str, str],
) -> Counted:
    """Kills one stage so many times, ends the run, and compares it with the unbroken one."""
    counted, workdir = Counted(), base / f"killed-{stage}"
    shutil.copytree(whole, workdir)
    undo(workdir, stage)
    while counted.kills < kills:
        if done(workdir, stage):
            undo(workdir, stage)
        counted.lives += 1
        code = kill_once(life(workdir, base), lambda: begun(workdir, stage), span, chance)
        if code is None and not done(workdir, stage):
            counted.kills += 1
        elif code:
            counted.mismatches.append(f"a life ended with {code}")
            break
    started = time.monotonic()
    if code := finish(life(workdir, base)):
        counted.mismatches.append(f"the last life ended with {code}")
    counted.recoveries.append(time.monotonic() - started)
    found = look(workdir)
    counted.mismatches += sorted(
        name for name in {*found, *expected} if found.get(name) != expected.get(name)
    )
    if not counted.mismatches:
        shutil.rmtree(workdir)
    return counted
