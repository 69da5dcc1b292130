"""The training loop that all stages share.

A step is jitted over a mesh of all devices: the batch is sharded, the state is replicated, and a mean
over the batch, BatchNorm's included, is over the global batch. (The release's data parallelism keeps
statistics per device.) The order is: evaluate, save, load a batch, step, log.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Key
from tqdm import tqdm

from chexseg_jax.runtime.memory import free_bytes, needed_bytes
from chexseg_jax.runtime.sharding import global_mesh, replicated, shard_global_batch, wait_for_all
from chexseg_jax.runtime.stage_folder import write_json
from chexseg_jax.training.checkpoints import (
    Checkpoints,
    abstract,
    merge_state,
    split_state,
    to_pure_dicts,
)
from chexseg_jax.training.data import READ, BatchError, image_ids_of, process_batches
from chexseg_jax.training.metrics_log import MetricsLog
from chexseg_jax.training.signals import Stopped, deferred_signals
from chexseg_jax.training.step import Objective, StepStatus, init_state, make_step

HEADROOM: Final = 0.95
"""The share of free memory that a step may take; batches that are read ahead need some too."""


class NotFinite(RuntimeError):
    """The loss of a step, its gradient or the updated weights are not finite."""


def poly(rate: float, steps: int, power: float = 0.9) -> optax.Schedule:
    """Return rate (1 - t/T)^power, IRNet's schedule."""
    return optax.polynomial_schedule(rate, 0.0, power, steps)


Schedule = Literal["constant", "cosine"]
"""The learning rate over a training: constant, or warmed up over 5 % of it, then a half cosine to 0."""
WARMUP = 0.05


def learning_rates(schedule: Schedule, rate: float, steps: int) -> optax.ScalarOrSchedule:
    """Return the learning rate of every step, for an optimizer."""
    if schedule == "constant":
        return rate
    warmup = max(1, round(WARMUP * steps))
    return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(warmup + 1, steps))


def adam(schedule: Schedule, rate: float, steps: int) -> optax.GradientTransformation:
    """Return Adam (Kingma & Ba 2015) with the learning rates of a training of so many steps."""
    return optax.adam(learning_rates(schedule, rate, steps))


def fit(
    model: nnx.Module,
    examples: grain.MapDataset,
    objective: Objective,
    optimizer: optax.GradientTransformation,
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
    accumulate: int = 1,
    average: float = 0.0,
) -> dict[str, float]:
    """Train a model and return the score and step of its best checkpoint.

    Args:
        model: the initial model; a checkpoint in the folder takes precedence.
        examples: an endless data set, the same in every process.
        objective: (model, batch, key, context) to a loss and further numbers to log.
        optimizer: an optax transformation.
        folder: where `checkpoints` and `metrics.jsonl` go; an interrupted training resumes there.
        name: the label of the progress bar.
        batch_size: examples in a step, over all devices.
        steps: the total number of steps.
        every: steps between two evaluations, each followed by a checkpoint.
        key: randomness; step s uses `fold_in(key, s)`.
        evaluate: a model to metrics, of which `score` chooses the best checkpoint; if None, the last one
            is the best.
        trained: filter of the variables that the optimizer updates.
        context: passed to the objective as an argument of the jitted step.
        accumulate: parts in which a step takes its batch; see `make_step`.
        average: decay of an exponential moving average of weights and statistics, which is what
            `evaluate` sees and checkpoints hold; 0 for none.

    Raises:
        BatchError: a step needs more memory than is free, or the batch does not divide.
        NotFinite: a loss, a gradient or a weight is NaN or infinite. The state before that step is
            saved, and the step's images are listed in `not_finite.json`.
        Stopped: a signal arrived (see `signals`); the step that was running is saved.
    """
    wait_for_all(f"train {folder.name}")
    mesh = global_mesh()
    graph, state = init_state(model, optimizer, trained, average)
    # Through the host, because no process can place arrays on another's devices. Copied, because a step
    # donates its input state's buffers, and the model is the caller's.
    state, context = jax.device_put(jax.device_get((state, context)), replicated(mesh))
    state = jax.tree.map(jnp.copy, state)
    train_step = make_step(
        graph, objective, optimizer, key, trained, accumulate=accumulate, average=average
    )

    def merge_model(state: Any) -> nnx.Module:
        weights = state["averages"] if average else state
        return nnx.merge(graph, weights["params"], weights["frozen"], copy=True)

    def resumed_only(state: Any) -> Any:
        """Return what a training needs to resume and a trained network does not hold."""
        return (state["opt_state"], *((state["params"], state["frozen"]) if average else ()))

    def checkpoint_items(state: Any) -> dict[str, Any]:
        _, parameters, statistics = to_pure_dicts(merge_model(state))
        opt_state = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(resumed_only(state)))}
        items = {"parameters": parameters, "statistics": statistics, "optimiser": opt_state}
        # Copied, because the next step may reuse the state's buffers while Orbax is writing.
        return jax.tree.map(jnp.copy, items)

    def state_from_items(items: dict[str, Any]) -> Any:
        restored = merge_state(merge_model(state), items["parameters"], items["statistics"])
        _, params, frozen = split_state(restored, trained)
        leaves = [items["optimiser"][str(i)] for i in range(len(items["optimiser"]))]
        rest = jax.tree.unflatten(jax.tree.structure(resumed_only(state)), leaves)
        resumed = {**state, "params": params, "frozen": frozen, "opt_state": rest[0]}
        if average:
            resumed["averages"] = {"params": params, "frozen": frozen}
            resumed["params"], resumed["frozen"] = rest[1:]
        return resumed

    def report_not_finite(step: int, quantity: str) -> str:
        """List the step's images in `not_finite.json` and return the error message."""
        image_ids = image_ids_of(examples, batch_size, step)
        path = folder / "not_finite.json"
        if jax.process_index() == 0:
            write_json(path, {"step": step, "broken": quantity, "image_ids": image_ids})
        return (
            f"{name}: at step {step} the {quantity} became infinite or not a number; its images are "
            f"{', '.join(image_ids[:3])}{', ...' if len(image_ids) > 3 else ''}, all named in {path}. "
            f"The state before it is kept, and the same command would end there again: look at those "
            f"images, or train anew with a smaller learning rate"
        )

    dataset, single_process = process_batches(examples, batch_size), jax.process_count() == 1
    check_accumulate(name, batch_size // jax.device_count(), accumulate)
    with Checkpoints(folder / "checkpoints") as checkpoints, deferred_signals() as signals:
        start = last_saved = checkpoints.latest() or 0
        if start:
            targets = abstract(jax.eval_shape(checkpoint_items, state), replicated(mesh))
            state = state_from_items(checkpoints.restore(start, targets))
        log = MetricsLog(folder / "metrics.jsonl", start)
        bar = tqdm(
            total=steps * batch_size,
            initial=start * batch_size,
            desc=name,
            unit=" images",
            unit_scale=True,
            disable=jax.process_index() > 0,
        )
        unchecked: tuple[int, StepStatus] | None = None

        def save_if_new(step: int, score: float) -> None:
            nonlocal last_saved
            if step > last_saved:
                checkpoints.save(step, checkpoint_items(state), score)
                last_saved = step

        def check_previous_step() -> int:
            """Wait for the previous step; return the signal that any process received before it."""
            nonlocal unchecked
            if unchecked is None:
                return 0
            (step, status), unchecked = jax.device_get(unchecked), None
            if quantity := status.non_finite():
                log.flush()
                save_if_new(step, -math.inf)  # to resume from; never the best
                raise NotFinite(report_not_finite(step, quantity))
            return int(status.pending_signal)

        batches, shared_signal = iter(dataset[start:].to_iter_dataset(READ)), 0
        for step in range(start, steps + 1):
            if step > start and (step % every == 0 or step == steps):
                shared_signal = shared_signal or check_previous_step()
                log.flush()
                metrics = evaluate(merge_model(state)) if evaluate else {"score": float(step)}
                log.write(step, metrics)
                save_if_new(step, metrics["score"])
            if step == steps:
                break
            # One process may stop now; several stop at the step that has told all of them.
            stop = signals.pending_signal if single_process else shared_signal
            if stop:
                check_previous_step()
                log.flush()
                save_if_new(step, -math.inf)
                raise Stopped(stop, f" after step {step} of {name}, which is kept")
            batch = shard_global_batch(next(batches), mesh)
            received = np.full(jax.local_device_count(), signals.pending_signal, np.int32)
            received = shard_global_batch(received, mesh)
            if step == start:
                arguments = (state, batch, np.int32(step), received, context)
                _check_memory(name, train_step, arguments, batch_size, accumulate)
                wait_for_all(f"compiled {folder.name}")  # which may take minutes longer in one
            state, logs, status = train_step(state, batch, np.int32(step), received, context)
            loss = log.add(step + 1, logs)
            shared_signal = check_previous_step()
            unchecked = (step, status)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(batch_size)
        bar.close()
        return checkpoints.best_score()


def check_accumulate(name: str, rows: int, accumulate: int) -> None:
    """Check that the rows of a batch that a device has divide into equal parts.

    Raises:
        BatchError: they do not; the message names the flag of the training.
    """
    if accumulate < 1 or rows % accumulate:
        raise BatchError(
            f"{_flag(name, 'accumulate')}={accumulate} does not divide the {rows} images of a batch "
            f"that a device has; choose a divisor of {rows}"
        )


def _flag(name: str, setting: str) -> str:
    """Return the flag of a training's setting; a teacher or an encoder has its stage's."""
    return f"--{name.partition('-')[0]}.{setting}"


def _check_memory(
    name: str,
    train_step: jax.stages.Wrapped,
    arguments: tuple[Any, ...],
    batch_size: int,
    accumulate: int,
) -> None:
    """Compile a step and check that what it needs is free.

    Raises:
        BatchError: it is not; the message names a batch that fits.
    """

    def needed_by(size: int) -> int:
        state, batch, *others = arguments
        rows = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype, sharding=a.sharding),
            batch,
        )
        return needed_bytes(train_step.lower(state, rows, *others).compile())

    needed, free = needed_by(batch_size), free_bytes(jax.local_devices()[0])
    if free is None or needed <= (usable := HEADROOM * free):
        return
    devices = jax.device_count()
    unit = devices * accumulate  # what a batch is a multiple of
    smaller = batch_size // unit // 2 * unit
    fits = 0
    if smaller:  # what a step needs is linear in its batch
        each = (needed - needed_by(smaller)) / (batch_size - smaller)
        fixed = needed - each * batch_size
        fits = int((usable - fixed) / max(each, 1) / unit) * unit
    message = (
        f"{name}: a step of {batch_size} images needs {needed / 1e9:.1f} GB of memory, and "
        f"{usable / 1e9:.1f} GB can be had"
    )
    if fits <= 0:
        raise BatchError(f"{message}, too little for one image on each device; free some of it")
    rows = batch_size // devices
    part = fits // accumulate
    parts = next(n for n in range(1, rows + 1) if rows % n == 0 and batch_size // n <= part)
    raise BatchError(
        f"{message}; take {_flag(name, 'batch-size')} {fits}, or {_flag(name, 'accumulate')} {parts} "
        f"for the same batch in {parts} parts (BatchNorm then sees one part at a time)"
    )
