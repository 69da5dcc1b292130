"""Stop the classifier's training with SIGTERM, and resume it."""

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from tests.killing.digests import differences, digests_of
from tests.killing.processes import finish, wait_until
from tests.killing.stages import delete_from, stage_starts, start_run

STOPPED = re.compile(r"Stopped after step (\d+) of classifier, which is kept")


def latest_step(folder: Path) -> int:
    """Return the latest complete step of a training's folder, 0 if there is none."""
    steps = (folder / "checkpoints").glob("*")
    return max((int(path.name) for path in steps if path.name.isdigit()), default=0)


def stop_classifier(trials: int, base: Path, span: float, rng: random.Random) -> dict[str, Any]:
    """Send SIGTERM at random moments of the stage, each time to a new training.

    Returns:
        Exit codes, seconds from the signal to the exit, steps made and not saved (nothing where the
        signal came before the first step), and differences after the training has resumed.
    """
    workdir, expected = base / "sigterm", digests_of(base / "uninterrupted", ("classifier",))
    shutil.copytree(base / "uninterrupted", workdir)
    log = base / f"{workdir.name}.log"
    figures: dict[str, list] = {"codes": [], "seconds": [], "lost": [], "mismatches": []}
    for _ in range(trials):
        delete_from(workdir, "classifier")
        log.unlink(missing_ok=True)
        pid = start_run(workdir, base, "classifier")
        wait_until(pid, lambda: "classifier" in stage_starts(base))
        time.sleep(rng.uniform(0, span))
        started = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        figures["codes"].append(finish(pid))
        figures["seconds"].append(round(time.monotonic() - started, 2))
        if stopped := STOPPED.search(log.read_text()):
            (folder,) = workdir.glob("classifier-*")
            figures["lost"].append(int(stopped[1]) - latest_step(folder))
        if code := finish(start_run(workdir, base, "classifier")):
            figures["mismatches"].append(f"the resumed run ended with {code}")
        figures["mismatches"] += differences(digests_of(workdir, ("classifier",)), expected)
    shutil.rmtree(workdir)
    return figures
