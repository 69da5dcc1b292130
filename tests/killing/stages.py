"""Kills in every stage of a run, from the phantoms to the report."""

import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from experiments import chexseg
from experiments.run import pipeline
from experiments.run.cli import managed_run
from experiments.run.config import StageName, read_arguments
from experiments.run.data import open_data
from tests.killing.digests import look
from tests.killing.lives import begin, finish, kill_once

STAGES = ("phantoms", *get_args(StageName), "report")
TINY = (
    *("--phantoms.train=32", "--phantoms.valid=16", "--phantoms.test=8"),
    *("--phantoms.short-side=64", "--image-size=64", "--classifier.network.blocks", *"1111"),
    *("--classifier.batch-size=8", "--classifier.epochs=4", "--classifier.every=4"),
    *("--cams.batch-size=8", "--irnet.radius=3", "--irnet.batch-size=4"),
    *("--irnet.every=1", "--segmenter.width=16", "--segmenter.batch-size=8"),
    *("--segmenter.epochs=2", "--segmenter.every=3", "--rho=0.9"),
)
"""Each training has four checkpoints at the least."""
LIVES = 4
"""So many lives are tried for each kill; a stage may be over before its kill."""


@dataclass
class Counted:
    """What happened to one stage."""

    kills: int = 0
    lives: int = 0
    compared: int = 0
    recoveries: list[float] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)


def done(workdir: Path, stage: str) -> bool:
    """Returns whether a stage is finished; the report is, when the last file of it is there."""
    last = {"phantoms": "phantoms/phantom.json", "report": "evaluation-*/report.html"}
    return any(workdir.glob(last.get(stage, f"{stage}-*/manifest.json")))


def undo(workdir: Path, stage: str) -> None:
    """Deletes a stage and all that follow it; the report's stage makes the masks of maps alone."""
    for name in STAGES[STAGES.index(stage) :]:
        found = ("evaluation-*/report.*", "evaluation-*/*.png", "pseudo_masks-cam-*")
        for pattern in found if name == "report" else (name, f"{name}-*"):
            for path in workdir.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def copy_up_to(stage: str, base: Path, workdir: Path) -> None:
    """Copies the unbroken run, without what follows a stage; the folder may be there."""
    shutil.copytree(base / "whole", workdir, dirs_exist_ok=True)
    for after in STAGES[STAGES.index(stage) + 1 :][:1]:
        undo(workdir, after)


def reached(base: Path) -> dict[str, float]:
    """Returns when the life that runs now, or ran last, came to each stage."""
    path, moments = base / "reached", {}
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):
            stage, moment = line.split()
            moments.setdefault(stage.partition("-")[0], float(moment))
    return moments


def run(workdir: Path, base: Path, until: str) -> None:
    """Runs up to a stage, and notes when it comes to each."""
    arguments = [f"--workdir={workdir}", *TINY]

    def come(stage: str) -> None:
        with (base / "reached").open("a") as file:
            file.write(f"{stage} {time.monotonic()}\n")

    def open_folder(workdir: Path, stage: str, *given: Any) -> Any:
        come(stage)
        return opened(workdir, stage, *given)

    def publish(run: pipeline.Run) -> None:
        if until == "report":
            come("report")
            published(run)

    opened, pipeline.open_stage_folder = pipeline.open_stage_folder, open_folder
    published, chexseg.publish = chexseg.publish, publish
    come("phantoms")
    if until == "phantoms":
        with managed_run(workdir):
            open_data(read_arguments("", arguments))
    else:
        asked = [] if until == "report" else [f"--until={until}"]
        chexseg.main([*arguments, *asked])


def life(workdir: Path, base: Path, until: str) -> int:
    """Begins one life of the run; returns its process."""
    (base / "reached").unlink(missing_ok=True)
    said = base / f"{workdir.name}.log"
    return begin(lambda: run(workdir, base, until), said, base / "cache")


def unbroken(base: Path, until: str) -> dict[str, float]:
    """Runs without a kill into `whole` and returns how long each stage took, seconds.

    It runs twice, as the first fills the cache of compiled functions, and compares the two.
    """
    for name in ("compiled", "whole"):
        if finish(life(base / name, base, until)):
            raise SystemExit((base / f"{name}.log").read_text())
    ended = time.monotonic()
    if names := differing(look(base / "compiled"), look(base / "whole")):
        raise SystemExit(f"two unbroken runs differ: {' '.join(names)}")
    moments, names = reached(base), STAGES[: STAGES.index(until) + 1]
    ends = [*(moments[name] for name in names[1:]), ended]
    return {name: end - moments[name] for name, end in zip(names, ends, strict=True)}


def differing(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Returns the names of what is not the same."""
    return sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))


def torment(
    stage: str,
    kills: int,
    base: Path,
    span: float,
    chance: random.Random,
) -> Counted:
    """Kills one stage so many times; whenever it is finished it is compared, and begun anew."""
    counted, workdir = Counted(), base / f"killed-{stage}"
    copy_up_to(stage, base, workdir)
    mine = ("evaluation", "pseudo_masks-cam") if stage == "report" else (stage,)
    expected = look(workdir, mine)
    undo(workdir, stage)

    def wanted() -> bool:
        return counted.kills < kills and counted.lives < LIVES * kills

    while True:
        aims = wanted()
        counted.lives += 1
        started, pid = time.monotonic(), life(workdir, base, stage)
        code = kill_once(pid, lambda: stage in reached(base), span, chance) if aims else finish(pid)
        if code is None:
            counted.kills += not done(workdir, stage)
            continue
        counted.recoveries.append(time.monotonic() - started)
        counted.mismatches += [f"a life ended with {code}"] if code else []
        counted.mismatches += differing(look(workdir, mine), expected)
        counted.compared += 1
        if counted.mismatches:
            return counted  # and the folder stays, to be looked at
        if not wanted():
            break
        undo(workdir, stage)
    shutil.rmtree(workdir)
    return counted
