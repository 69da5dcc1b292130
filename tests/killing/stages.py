"""Kill each stage of a run, from the phantoms to the report."""

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
from tests.killing.digests import differences, digests_of
from tests.killing.processes import finish, kill_within, start

STAGES = ("phantoms", *get_args(StageName), "report")
TINY = (
    *("--phantoms.train=32", "--phantoms.valid=16", "--phantoms.test=8"),
    *("--phantoms.short-side=64", "--image-size=64", "--classifier.network.blocks", *"1111"),
    *("--classifier.batch-size=8", "--classifier.epochs=4", "--classifier.every=4"),
    *("--cams.batch-size=8", "--irnet.radius=3", "--irnet.batch-size=4"),
    *("--irnet.every=1", "--segmenter.width=16", "--segmenter.batch-size=8"),
    *("--segmenter.epochs=2", "--segmenter.every=3", "--rho=0.9"),
    "--pseudo=irnet",
)
"""Settings with which every training saves at least four checkpoints."""
RUNS_PER_KILL = 4
"""The maximum number of runs for each kill; a stage may end before it is killed."""


@dataclass
class KillCounts:
    """What happened to one stage."""

    kills: int = 0
    runs: int = 0
    compared: int = 0
    recoveries: list[float] = field(default_factory=list)  # seconds
    mismatches: list[str] = field(default_factory=list)


def is_finished(workdir: Path, stage: str) -> bool:
    """Return whether a stage has written its last file."""
    last = {"phantoms": "phantoms/phantom.json", "report": "evaluation-*/report.html"}
    return any(workdir.glob(last.get(stage, f"{stage}-*/manifest.json")))


def delete_from(workdir: Path, stage: str) -> None:
    """Delete a stage and all later ones; the report's stage makes the CAMs' pseudo-masks."""
    for name in STAGES[STAGES.index(stage) :]:
        report = ("evaluation-*/report.*", "evaluation-*/*.png", "pseudo_masks-cam-*")
        for pattern in report if name == "report" else (name, f"{name}-*"):
            for path in workdir.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def copy_up_to(stage: str, base: Path, workdir: Path) -> None:
    """Copy the uninterrupted run up to a stage; the folder may exist."""
    shutil.copytree(base / "uninterrupted", workdir, dirs_exist_ok=True)
    for later in STAGES[STAGES.index(stage) + 1 :][:1]:
        delete_from(workdir, later)


def stage_starts(base: Path) -> dict[str, float]:
    """Return when the current or last run started each stage."""
    path, times = base / "stage_starts", {}
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):
            stage, moment = line.split()
            times.setdefault(stage.partition("-")[0], float(moment))
    return times


def run(workdir: Path, base: Path, until: str) -> None:
    """Run up to a stage and record the start of each."""
    arguments = [f"--workdir={workdir}", *TINY]

    def record(stage: str) -> None:
        with (base / "stage_starts").open("a") as file:
            file.write(f"{stage} {time.monotonic()}\n")

    def recorded_open(workdir: Path, stage: str, *more: Any) -> Any:
        record(stage)
        return open_stage_folder(workdir, stage, *more)

    def recorded_publish(run: pipeline.Run) -> None:
        if until == "report":
            record("report")
            publish(run)

    open_stage_folder, pipeline.open_stage_folder = pipeline.open_stage_folder, recorded_open
    publish, chexseg.publish = chexseg.publish, recorded_publish
    record("phantoms")
    if until == "phantoms":
        with managed_run(workdir):
            open_data(read_arguments("", arguments))
    else:
        chexseg.main([*arguments, *([] if until == "report" else [f"--until={until}"])])


def start_run(workdir: Path, base: Path, until: str) -> int:
    """Start or resume the run; return its process id."""
    (base / "stage_starts").unlink(missing_ok=True)
    return start(lambda: run(workdir, base, until), base / f"{workdir.name}.log", base / "cache")


def run_uninterrupted(base: Path, until: str) -> dict[str, float]:
    """Run into `uninterrupted` and return the seconds of each stage.

    It runs twice, because the first run fills the cache of compiled functions, and compares the two.
    """
    for name in ("compiled", "uninterrupted"):
        if finish(start_run(base / name, base, until)):
            raise SystemExit((base / f"{name}.log").read_text())
    ended = time.monotonic()
    if names := differences(digests_of(base / "compiled"), digests_of(base / "uninterrupted")):
        raise SystemExit(f"two uninterrupted runs differ: {' '.join(names)}")
    starts, names = stage_starts(base), STAGES[: STAGES.index(until) + 1]
    ends = [*(starts[name] for name in names[1:]), ended]
    return {name: end - starts[name] for name, end in zip(names, ends, strict=True)}


def kill_stage(stage: str, kills: int, base: Path, span: float, rng: random.Random) -> KillCounts:
    """Kill a stage `kills` times; whenever it finishes, compare it and start it again."""
    counts, workdir = KillCounts(), base / f"killed-{stage}"
    copy_up_to(stage, base, workdir)
    prefixes = ("evaluation", "pseudo_masks-cam") if stage == "report" else (stage,)
    expected = digests_of(workdir, prefixes)
    delete_from(workdir, stage)

    def kills_remain() -> bool:
        return counts.kills < kills and counts.runs < RUNS_PER_KILL * kills

    while True:
        to_kill = kills_remain()
        counts.runs += 1
        started, pid = time.monotonic(), start_run(workdir, base, stage)
        code = (
            kill_within(pid, lambda: stage in stage_starts(base), span, rng)
            if to_kill
            else finish(pid)
        )
        if code is None:
            counts.kills += not is_finished(workdir, stage)
            continue
        counts.recoveries.append(time.monotonic() - started)
        counts.mismatches += [f"a run ended with {code}"] if code else []
        counts.mismatches += differences(digests_of(workdir, prefixes), expected)
        counts.compared += 1
        if counts.mismatches:
            return counts  # the folder stays for inspection
        if not kills_remain():
            break
        delete_from(workdir, stage)
    shutil.rmtree(workdir)
    return counts
