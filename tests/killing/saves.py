"""Kills inside checkpoint writes, and what SIGTERM costs."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from chexseg_jax.stopping import Stopped, stoppable
from chexseg_jax.training import fit
from tests.killing.lives import begin, ended, finish, kill_once
from tests.killing.stages import Counted

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

    with stoppable():
        try:
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
        except Stopped as stopped:
            raise SystemExit(stopped.code) from stopped


def _example(index: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(int(index)).normal(size=512).astype(np.float32)}


def life(folder: Path, base: Path) -> int:
    """Begins or goes on with the training; returns its process."""
    folder.mkdir(parents=True, exist_ok=True)
    return begin(lambda: train(folder), base / "saves.log", base / "cache-saves")


def writing(folder: Path) -> bool:
    """Returns whether a checkpoint is being written."""
    try:
        return any("orbax-checkpoint-tmp" in e.name for e in os.scandir(folder / "checkpoints"))
    except FileNotFoundError:
        return False


def newest(folder: Path) -> int:
    """Returns the newest complete step."""
    return max(
        (int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()), default=0
    )


def writing_after(folder: Path, step: int) -> bool:
    """Returns whether a checkpoint is being written, and this step is there already."""
    return writing(folder) and newest(folder) >= step


def torment(
    kills: int, base: Path, chance: random.Random, look: Callable[[Path], dict[str, str]]
) -> Counted:
    """Kills checkpoint writes so many times; every training is ended and compared."""
    if finish(life(base / "saves", base)):
        raise SystemExit((base / "saves.log").read_text())
    expected, counted, trial = look(base / "saves"), Counted(), 0
    while counted.kills < kills:
        trial, code = trial + 1, -1
        folder = base / f"saves-{trial}"
        while code != 0:
            counted.lives += 1
            started, wanted = time.monotonic(), counted.kills < kills
            pid = life(folder, base)
            if wanted:
                # Not always in the first save of a life, or a training would never get on.
                beyond = newest(folder) + chance.randint(0, 3)
                code = kill_once(pid, partial(writing_after, folder, beyond), 0.02, chance)
                counted.kills += code is None and writing(folder)
            else:
                code = finish(pid)
            if code not in (None, 0):
                counted.mismatches.append(f"a life ended with {code}")
                return counted
        counted.recoveries.append(time.monotonic() - started)
        found = look(folder)
        counted.mismatches += [
            name for name in {*found, *expected} if found.get(name) != expected.get(name)
        ]
        shutil.rmtree(folder)
    return counted


def terminate(base: Path, chance: random.Random) -> dict[str, float]:
    """Sends SIGTERM while a training steps; returns the exit code and the seconds to it."""
    folder = base / "terminated"
    pid = life(folder, base)
    while not (folder / "checkpoints").is_dir() or not any((folder / "checkpoints").iterdir()):
        if ended(pid) is not None:
            raise SystemExit((base / "saves.log").read_text())
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.2))
    started = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    code = finish(pid)
    return {"code": code, "seconds": round(time.monotonic() - started, 2)}
