"""The one training loop.

A step is `jax.jit` over a mesh of all devices: the batch is split, the state is on all of them, and a
mean over the batch, BatchNorm's included, is over the whole of it. (The release's data parallelism
keeps statistics per device.) The order is: evaluate, save, draw, step, log.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Key
from tqdm import tqdm

from chexseg_jax.checkpoints import Checkpoints, abstract, fill, part, split
from chexseg_jax.data import READ, batched
from chexseg_jax.devices import divided, mesh, replicated
from chexseg_jax.logs import Log
from chexseg_jax.stopping import Stopped, patience

Batch = dict[str, Any]
Logs = dict[str, Float[Array, ""]]
Objective = Callable[[Any, Batch, Key[Array, ""], Any], tuple[Float[Array, ""], Logs]]


class NotFinite(RuntimeError):
    """The loss of a step, or what it made of the weights, is not a number."""


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
        examples: this process's part of the examples, without end.
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
        NotFinite: a loss, or a weight that is to be saved, is NaN or infinite; the checkpoints before
            it are kept.
        Stopped: a signal asked for it (see `stopping`); the step that was done is saved.
    """
    over = mesh()
    structure, learned, kept = part(model, trained)
    state = {"learned": learned, "kept": kept, "optimiser": optimiser.init(learned)}
    # Copies, because a step gives its state's memory away, and the model is the caller's.
    state = jax.tree.map(jnp.copy, jax.device_put(state, replicated(over)))
    context = jax.device_put(context, replicated(over))

    def assemble(state: Any) -> nnx.Module:
        return nnx.merge(structure, state["learned"], state["kept"], copy=True)

    def pack(state: Any) -> dict[str, Any]:
        _, parameters, statistics = split(assemble(state))
        memory = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state["optimiser"]))}
        # Copies, because the next step may reuse the state's memory while it is being written.
        items = {"parameters": parameters, "statistics": statistics, "optimiser": memory}
        return jax.tree.map(jnp.copy, items)

    def unpack(items: dict[str, Any]) -> Any:
        whole = fill(assemble(state), items["parameters"], items["statistics"])
        _, learned, kept = part(whole, trained)
        leaves = [items["optimiser"][str(i)] for i in range(len(items["optimiser"]))]
        memory = jax.tree.unflatten(jax.tree.structure(state["optimiser"]), leaves)
        return {"learned": learned, "kept": kept, "optimiser": memory}

    @partial(jax.jit, donate_argnums=0)
    def advance(state: Any, batch: Batch, step: Array, context: Any) -> tuple[Any, Logs]:
        def loss_of(learned: Any) -> tuple[Float[Array, ""], tuple[Any, Logs]]:
            model = nnx.merge(structure, learned, state["kept"], copy=True)
            loss, logs = objective(model, batch, jax.random.fold_in(key, step), context)
            return loss, (part(model, trained)[2], {"loss": loss, **logs})

        gradients, (kept, logs) = jax.grad(loss_of, has_aux=True)(state["learned"])
        updates, memory = optimiser.update(gradients, state["optimiser"], state["learned"])
        learned = optax.apply_updates(state["learned"], updates)
        return {"learned": learned, "kept": kept, "optimiser": memory}, logs

    @jax.jit
    def sound(state: Any) -> Array:
        leaves = [v for v in jax.tree.leaves(state) if jnp.issubdtype(v.dtype, jnp.inexact)]
        return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()

    dataset = batched(examples, batch_size)
    with Checkpoints(folder / "checkpoints") as checkpoints, patience() as stop:
        start = checkpoints.latest() or 0
        if start:
            targets = abstract(jax.eval_shape(pack, state), replicated(over))
            state = unpack(checkpoints.restore(start, targets))
        log = Log(folder / "metrics.jsonl", start, name)
        bar = tqdm(
            total=steps * batch_size,
            initial=start * batch_size,
            desc=name,
            unit=" images",
            unit_scale=True,
            disable=jax.process_index() > 0,
        )

        def check(step: int, loss: float, weights: bool = True) -> None:
            """Refuses a loss, or weights, that are not finite."""
            if np.isfinite(loss) and weights:
                return
            what = "the weights are not finite" if np.isfinite(loss) else f"the loss is {loss}"
            raise NotFinite(
                f"{name}: {what} near step {step}; the checkpoint of step "
                f"{checkpoints.latest() or 0} is kept. Lower the learning rate and run again"
            )

        stream = iter(dataset[start:].to_iter_dataset(READ))
        for step in range(start, steps + 1):
            due = step > start and (step % every == 0 or step == steps)
            if due:
                check(step, log.flush(), bool(sound(state)))
                metrics = evaluate(assemble(state)) if evaluate else {"score": float(step)}
                log.write(step, metrics)
                checkpoints.save(step, pack(state), metrics["score"])
            if step == steps:
                break
            if stop.asked:
                check(step, log.flush(), bool(sound(state)))
                if step > start and not due:  # it is kept to go on from, never as the best
                    checkpoints.save(step, pack(state), -math.inf)
                raise Stopped(stop.asked, f" after step {step} of {name}, which is kept")
            batch = divided(next(stream), over)
            state, logs = advance(state, batch, np.int32(step), context)
            loss = log.add(step + 1, logs)
            check(step, loss)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(batch_size)
        log.flush()
        bar.close()
        return checkpoints.best_score()
