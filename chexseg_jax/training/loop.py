"""The one training loop.

A step is `jax.jit` over a mesh of all devices: the batch is split, the state is on all of them, and a
mean over the batch, BatchNorm's included, is over the whole of it. (The release's data parallelism
keeps statistics per device.) The order is: evaluate, save, draw, step, log.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Key
from tqdm import tqdm

from chexseg_jax.runtime.sharding import global_mesh, replicated, shard_global_batch, wait_for_all
from chexseg_jax.runtime.stage_folder import write_json
from chexseg_jax.training.checkpoints import (
    Checkpoints,
    abstract,
    merge_state,
    split_state,
    to_pure_dicts,
)
from chexseg_jax.training.data import READ, image_ids_of, process_batches
from chexseg_jax.training.metrics_log import MetricsLog
from chexseg_jax.training.signals import Stopped, deferred_signals
from chexseg_jax.training.step import Objective, StepStatus, init_state, make_step


class NotFinite(RuntimeError):
    """The loss of a step, its gradient, or what it made of the weights, is not finite."""


def poly(rate: float, steps: int, power: float = 0.9) -> optax.Schedule:
    """Returns rate (1 - t/T)^power, IRNet's schedule."""
    return optax.polynomial_schedule(rate, 0.0, power, steps)


def fit(
    model: nnx.Module,
    examples: grain.MapDataset,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    *,
    folder: Path,
    name: str,
    batch_size: int,
    steps: int,
    every: int,
    key: Key[Array, ""],
    evaluate: Callable[[nnx.Module], dict[str, float]] | None = None,
    trained: nnx.filterlib.Filter = nnx.Param,
    context: Any = None,
) -> dict[str, float]:
    """Trains a model and returns the score and step of its best checkpoint.

    Args:
        model: where training starts, unless the folder holds a later state.
        examples: all of them, without end, alike in every process.
        objective: (model, batch, key, context) to a loss and numbers worth a log line.
        optimiser: an optax transformation.
        folder: where `checkpoints` and `metrics.jsonl` go; a training that was stopped goes on here.
        name: what the progress bar calls it.
        batch_size: examples in a step, over all devices.
        steps: how many.
        every: steps between two evaluations, each followed by a checkpoint.
        key: randomness; step s uses `fold_in(key, s)`.
        evaluate: a model to metrics, of which `score` chooses the best; without it the last is best.
        trained: which variables learn; the others are kept as they are.
        context: what the objective also needs, passed through the compiled step.

    Raises:
        NotFinite: a loss, a gradient or a weight is NaN or infinite. The state before that step is
            saved, and the step's images are named in `not_finite.json`.
        Stopped: a signal asked for it (see `stopping`); the step that was done is saved.
    """
    wait_for_all(f"train {folder.name}")
    over = global_mesh()
    structure, state = init_state(model, optimiser, trained)
    # By way of the host: a process's own devices cannot give to another's. Copies, because a step
    # gives its state's memory away, and the model is the caller's.
    state, context = jax.device_put(jax.device_get((state, context)), replicated(over))
    state = jax.tree.map(jnp.copy, state)
    advance = make_step(structure, objective, optimiser, key, trained)

    def assemble(state: Any) -> nnx.Module:
        return nnx.merge(structure, state["learned"], state["kept"], copy=True)

    def pack(state: Any) -> dict[str, Any]:
        _, parameters, statistics = to_pure_dicts(assemble(state))
        memory = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state["optimiser"]))}
        # Copies, because the next step may reuse the state's memory while it is being written.
        items = {"parameters": parameters, "statistics": statistics, "optimiser": memory}
        return jax.tree.map(jnp.copy, items)

    def unpack(items: dict[str, Any]) -> Any:
        whole = merge_state(assemble(state), items["parameters"], items["statistics"])
        _, learned, kept = split_state(whole, trained)
        leaves = [items["optimiser"][str(i)] for i in range(len(items["optimiser"]))]
        memory = jax.tree.unflatten(jax.tree.structure(state["optimiser"]), leaves)
        return {**state, "learned": learned, "kept": kept, "optimiser": memory}

    def note(step: int, broken: str) -> str:
        """Says what broke, and leaves the names of the step's images beside the checkpoints."""
        image_ids = image_ids_of(examples, batch_size, step)
        path = folder / "not_finite.json"
        if jax.process_index() == 0:
            write_json(path, {"step": step, "broken": broken, "image_ids": image_ids})
        return (
            f"{name}: at step {step} the {broken} became infinite or not a number; its images are "
            f"{', '.join(image_ids[:3])}{', ...' if len(image_ids) > 3 else ''}, all named in {path}. "
            f"The state before it is kept, and the same command would end there again: look at those "
            f"images, or train anew with a smaller learning rate"
        )

    dataset, alone = process_batches(examples, batch_size), jax.process_count() == 1
    with Checkpoints(folder / "checkpoints") as checkpoints, deferred_signals() as stop:
        start = saved = checkpoints.latest() or 0
        if start:
            targets = abstract(jax.eval_shape(pack, state), replicated(over))
            state = unpack(checkpoints.restore(start, targets))
        log = MetricsLog(folder / "metrics.jsonl", start, name)
        bar = tqdm(
            total=steps * batch_size,
            initial=start * batch_size,
            desc=name,
            unit=" images",
            unit_scale=True,
            disable=jax.process_index() > 0,
        )
        pending: tuple[int, StepStatus] | None = None

        def keep(step: int, score: float) -> None:
            nonlocal saved
            if step > saved:
                checkpoints.save(step, pack(state), score)
                saved = step

        def look() -> int:
            """Waits for the step before, ends if it broke, and returns what any process was asked."""
            nonlocal pending
            if pending is None:
                return 0
            (step, found), pending = jax.device_get(pending), None
            if broken := found.broken():
                log.flush()
                keep(step, -math.inf)  # to go on from, never the best
                raise NotFinite(note(step, broken))
            return int(found.asked)

        stream, asked = iter(dataset[start:].to_iter_dataset(READ)), 0
        for step in range(start, steps + 1):
            if step > start and (step % every == 0 or step == steps):
                asked = asked or look()
                log.flush()
                metrics = evaluate(assemble(state)) if evaluate else {"score": float(step)}
                log.write(step, metrics)
                keep(step, metrics["score"])
            if step == steps:
                break
            # Alone one may stop here; several processes stop when a step has told them all.
            asked = stop.asked if alone else asked
            if asked:
                look()
                log.flush()
                keep(step, -math.inf)
                raise Stopped(asked, f" after step {step} of {name}, which is kept")
            batch = shard_global_batch(next(stream), over)
            asks = shard_global_batch(np.full(jax.local_device_count(), stop.asked, np.int32), over)
            if step == start and not alone:  # one may compile for longer than a peer may be late
                advance.lower(state, batch, np.int32(step), asks, context).compile()
                wait_for_all(f"compiled {folder.name}")
            state, logs, found = advance(state, batch, np.int32(step), asks, context)
            loss = log.add(step + 1, logs)
            asked = look()
            pending = (step, found)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(batch_size)
        bar.close()
        return checkpoints.best_score()
