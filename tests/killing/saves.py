"""Kills inside checkpoint writes."""

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
from tests.killing.asking import newest
from tests.killing.digests import look
from tests.killing.lives import begin, finish, kill_once
from tests.killing.stages import LIVES, Counted, differing

STEPS = 12


class Net(nnx.Module):
    """A layer of two megabytes, and statistics: a checkpoint's items may not be empty."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(512, 1024, rngs=rngs)
        self.norm = nnx.BatchNorm(1024, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.layer(x))


def train(folder: Path) -> None:
    """Trains a network of a few megabytes, saving after every step."""
    model = Net(nnx.Rngs(0))
    examples = grain.MapDataset.range(64).seed(3).shuffle().repeat().map(_example)

    def objective(model, batch, key, context):
        noise = jax.random.normal(key, (1024,))
        return jnp.mean((model(batch["x"]) - noise[None]) ** 2), {}

    def restore(self: Checkpoints, step: int, items: dict[str, Any]) -> dict[str, Any]:
        found = restores(self, step, items)
        folder.with_suffix(".restored").write_text(str(step))
        return found

    def latest(self: Checkpoints) -> int | None:
        found = latests(self)
        if not found:
            folder.with_suffix(".restored").write_text("0")
        return found

    restores, Checkpoints.restore = Checkpoints.restore, restore
    latests, Checkpoints.latest = Checkpoints.latest, latest
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


def life(folder: Path, base: Path) -> int:
    """Begins or goes on with the training; returns its process."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.with_suffix(".restored").unlink(missing_ok=True)
    return begin(lambda: train(folder), base / "saves.log", base / "cache")


def restored(folder: Path) -> int | None:
    """Returns the step that the last life went on from, None if it did not come so far."""
    path = folder.with_suffix(".restored")
    said = path.read_text() if path.exists() else ""
    return int(said) if said else None


def writing(folder: Path) -> bool:
    """Returns whether a checkpoint is being written."""
    try:
        return any("orbax-checkpoint-tmp" in e.name for e in os.scandir(folder / "checkpoints"))
    except FileNotFoundError:
        return False


def torment(kills: int, base: Path, chance: random.Random) -> Counted:
    """Kills checkpoint writes so many times; every training is ended and compared."""
    if finish(life(base / "saves", base)):
        raise SystemExit((base / "saves.log").read_text())
    expected, counted = look(base / "saves"), Counted()
    while counted.kills < kills and counted.lives < LIVES * kills:
        code, folder = -1, base / f"saves-{counted.compared}"
        while code != 0:
            counted.lives += 1
            started, kept = time.monotonic(), newest(folder)
            pid = life(folder, base)
            if counted.kills < kills:
                # Not always in the first save of a life, or a training would never get on.
                beyond = kept + chance.randint(0, 3)

                def aimed(folder: Path = folder, beyond: int = beyond) -> bool:
                    # Until a life has restored, what is half written is of the life before.
                    begun = restored(folder) is not None
                    return begun and writing(folder) and newest(folder) >= beyond

                code = kill_once(pid, aimed, 0.02, chance)
                counted.kills += code is None and writing(folder)
            else:
                code = finish(pid)
            if code:
                counted.mismatches.append(f"a life ended with {code}")
                return counted
            if (found := restored(folder)) not in (kept, None):
                counted.mismatches.append(f"step {kept} was there and {found} was restored")
        counted.recoveries.append(time.monotonic() - started)
        counted.mismatches += differing(look(folder), expected)
        counted.compared += 1
        shutil.rmtree(folder)
    return counted
