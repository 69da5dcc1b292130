"""Kill a training while it writes checkpoints."""

import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from chexseg_jax.training.checkpoints import Checkpoints
from chexseg_jax.training.loop import fit
from tests.killing.digests import differences, digests_of
from tests.killing.processes import finish, kill_within, start
from tests.killing.sigterm import latest_step
from tests.killing.stages import RUNS_PER_KILL, KillCounts

STEPS = 12


class Net(nnx.Module):
    """A layer of two megabytes, and batch statistics, because a checkpoint's items may not be empty."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(512, 1024, rngs=rngs)
        self.norm = nnx.BatchNorm(1024, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.layer(x))


def train(folder: Path) -> None:
    """Train a network of a few megabytes, saving after every step, and record the restored step."""
    model = Net(nnx.Rngs(0))
    examples = grain.MapDataset.range(64).seed(3).shuffle().repeat().map(_example)

    def objective(model, batch, key, context):
        noise = jax.random.normal(key, (1024,))
        return jnp.mean((model(batch["x"]) - noise[None]) ** 2), {}

    def restore(self: Checkpoints, step: int, items: dict[str, Any]) -> dict[str, Any]:
        restored = original_restore(self, step, items)
        folder.with_suffix(".restored").write_text(str(step))
        return restored

    def latest(self: Checkpoints) -> int | None:
        step = original_latest(self)
        if not step:
            folder.with_suffix(".restored").write_text("0")
        return step

    original_restore, Checkpoints.restore = Checkpoints.restore, restore
    original_latest, Checkpoints.latest = Checkpoints.latest, latest
    fit(
        model,
        examples,
        objective,
        optax.adam(1e-3),
        folder=folder,
        name="saves",
        batch_size=8,
        steps=STEPS,
        every=1,
        key=jax.random.key(0),
    )


def _example(index: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(int(index)).normal(size=512).astype(np.float32)}


def start_training(folder: Path, base: Path) -> int:
    """Start or resume the training; return its process id."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.with_suffix(".restored").unlink(missing_ok=True)
    return start(lambda: train(folder), base / "saves.log", base / "cache")


def restored_step(folder: Path) -> int | None:
    """Return the step that the last run resumed from, None if it was killed before."""
    path = folder.with_suffix(".restored")
    content = path.read_text() if path.exists() else ""
    return int(content) if content else None


def is_saving(folder: Path) -> bool:
    """Return whether a checkpoint is being written."""
    try:
        return any("orbax-checkpoint-tmp" in e.name for e in os.scandir(folder / "checkpoints"))
    except FileNotFoundError:
        return False


def kill_saves(kills: int, base: Path, rng: random.Random) -> KillCounts:
    """Kill `kills` checkpoint writes; every training is finished and compared."""
    if finish(start_training(base / "saves", base)):
        raise SystemExit((base / "saves.log").read_text())
    expected, counts = digests_of(base / "saves"), KillCounts()
    while counts.kills < kills and counts.runs < RUNS_PER_KILL * kills:
        code, folder = -1, base / f"saves-{counts.compared}"
        while code != 0:
            counts.runs += 1
            started, saved = time.monotonic(), latest_step(folder)
            pid = start_training(folder, base)
            if counts.kills < kills:
                # Not always in the first save of a run, or the training would never advance.
                after = saved + rng.randint(0, 3)

                def saving(folder: Path = folder, after: int = after) -> bool:
                    # Until a run has restored, a partial checkpoint is the previous run's.
                    restored = restored_step(folder) is not None
                    return restored and is_saving(folder) and latest_step(folder) >= after

                code = kill_within(pid, saving, 0.02, rng)
                counts.kills += code is None and is_saving(folder)
            else:
                code = finish(pid)
            if code:
                counts.mismatches.append(f"a run ended with {code}")
                return counts
            if (restored := restored_step(folder)) not in (saved, None):
                counts.mismatches.append(f"step {saved} was saved and {restored} was restored")
        counts.recoveries.append(time.monotonic() - started)
        counts.mismatches += differences(digests_of(folder), expected)
        counts.compared += 1
        shutil.rmtree(folder)
    return counts
