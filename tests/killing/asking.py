"""What SIGTERM costs: the stage that trains the classifier is asked to stop, and goes on."""

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from tests.killing.digests import look
from tests.killing.lives import finish, wait
from tests.killing.stages import differing, life, reached, undo

KEPT = re.compile(r"Stopped after step (\d+) of classifier, which is kept")


def newest(folder: Path) -> int:
    """Returns the newest complete step of a training's folder."""
    steps = (folder / "checkpoints").glob("*")
    return max((int(path.name) for path in steps if path.name.isdigit()), default=0)


def ask(trials: int, base: Path, span: float, chance: random.Random) -> dict[str, Any]:
    """Sends SIGTERM at random moments of the stage, each time to a training begun anew.

    Returns:
        Exit codes, seconds from the signal to the end, steps done and not kept (none where the signal
        came before the first step), and what differs once the training has gone on.
    """
    workdir, expected = base / "asked", look(base / "whole", ("classifier",))
    shutil.copytree(base / "whole", workdir)
    said = base / f"{workdir.name}.log"
    figures: dict[str, list] = {"codes": [], "seconds": [], "lost": [], "mismatches": []}
    for _ in range(trials):
        undo(workdir, "classifier")
        said.unlink(missing_ok=True)
        pid = life(workdir, base, "classifier")
        wait(pid, lambda: "classifier" in reached(base))
        time.sleep(chance.uniform(0, span))
        started = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        figures["codes"].append(finish(pid))
        figures["seconds"].append(round(time.monotonic() - started, 2))
        if kept := KEPT.search(said.read_text()):
            (folder,) = workdir.glob("classifier-*")
            figures["lost"].append(int(kept[1]) - newest(folder))
        if code := finish(life(workdir, base, "classifier")):
            figures["mismatches"].append(f"going on ended with {code}")
        figures["mismatches"] += differing(look(workdir, ("classifier",)), expected)
    shutil.rmtree(workdir)
    return figures
