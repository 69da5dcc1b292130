"""One training step: gradient, update, and a guard that keeps the last finite state.

A step is one compiled function over the whole mesh. Its status is returned with it, so that every
process learns the same at the same step: whether the numbers were finite, and whether a process has a
signal pending. A batch that does not fit into memory is taken in parts, whose gradients are averaged.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from chexseg_jax.runtime.cpu import compiler_options
from chexseg_jax.training.checkpoints import split_state

Batch = dict[str, Any]
Logs = dict[str, Float[Array, ""]]
Objective = Callable[[Any, Batch, Key[Array, ""], Any], tuple[Float[Array, ""], Logs]]


class StepStatus(NamedTuple):
    """Whether a step's numbers are finite, and the signal that a process has received, or 0."""

    loss_finite: Bool[Array, ""]
    gradient_finite: Bool[Array, ""]
    params_finite: Bool[Array, ""]
    pending_signal: Int[Array, ""]

    def non_finite(self) -> str | None:
        """Return the first of loss, gradient and weights that is not finite, None if all are."""
        checks = {
            "loss": self.loss_finite,
            "gradient": self.gradient_finite,
            "weights": self.params_finite,
        }
        return next((name for name, finite in checks.items() if not finite), None)


def is_finite(tree: Any) -> Bool[Array, ""]:
    """Return whether every number of a tree is finite."""
    leaves = [v for v in jax.tree.leaves(tree) if jnp.issubdtype(v.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def init_state(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    trained: nnx.filterlib.Filter,
    average: float = 0.0,
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Return a model's graph, and the initial state of its training.

    The state holds `params` that are trained, `frozen` variables (batch statistics among them),
    `opt_state`, `all_finite`, and, where weights are averaged, `averages` of the first two.
    """
    graph, params, frozen = split_state(model, trained)
    averages = {"averages": {"params": params, "frozen": frozen}} if average else {}
    return graph, averages | {
        "params": params,
        "frozen": frozen,
        "opt_state": optimizer.init(params),
        "all_finite": jnp.ones((), bool),
    }


def moving_average(averages: Any, values: Any, decay: float, step: Int[Array, ""]) -> Any:
    """Return exponential moving averages after one more step; numbers that are not real are replaced.

    The decay rises as (1 + step) / (10 + step) to its value, so that the initial weights are soon
    forgotten.
    """
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))

    def average(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return (old + rate * (new.astype(jnp.float32) - old)).astype(new.dtype)

    return jax.tree.map(average, averages, values)


def make_step(
    graph: nnx.GraphDef,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    trained: nnx.filterlib.Filter = nnx.Param,
    accumulate: int = 1,
    average: float = 0.0,
) -> jax.stages.Wrapped:
    """Return the compiled step of a training; it donates its input buffers.

    Called with (state, batch, number, signals, context), where `number` picks the step's randomness and
    `signals` holds, for each device, the signal that its process has received, or 0. A step whose loss,
    gradient or result is not finite leaves the state as it was, and so does every step after it.

    With `accumulate` = n the batch is taken in n parts in turn, and gradient, loss and logs are
    the means over them. BatchNorm then sees a part at a time: it normalizes by the part's moments and
    updates its running statistics n times.
    """

    @partial(jax.jit, donate_argnums=0, compiler_options=compiler_options())
    def step(
        state: dict[str, Any],
        batch: Batch,
        number: Int[Array, ""],
        signals: Int[Array, "d"],
        context: Any,
    ) -> tuple[dict[str, Any], Logs, StepStatus]:
        def loss_of(
            params: Any, frozen: Any, batch: Batch, key: Key[Array, ""]
        ) -> tuple[Float[Array, ""], tuple[Any, Logs]]:
            model = nnx.merge(graph, params, frozen, copy=True)
            loss, logs = objective(model, batch, key, context)
            return loss, (split_state(model, trained)[2], {"loss": loss, **logs})

        def add_part(total: Any, part: tuple[Batch, Key[Array, ""]]) -> tuple[Any, None]:
            (frozen, *sums), (rows, part_key) = total, part
            gradients, (frozen, logs) = gradient_of(state["params"], frozen, rows, part_key)
            return (frozen, *jax.tree.map(jnp.add, sums, [gradients, logs])), None

        gradient_of, step_key = jax.grad(loss_of, has_aux=True), jax.random.fold_in(key, number)
        if accumulate == 1:
            arguments = (state["params"], state["frozen"], batch, step_key)
            gradients, (frozen, logs) = gradient_of(*arguments)
        else:
            parts = jax.tree.map(partial(_in_parts, count=accumulate), batch)
            keys = jax.random.split(step_key, accumulate)
            first = (jax.tree.map(lambda rows: rows[0], parts), keys[0])
            shapes = jax.eval_shape(gradient_of, state["params"], state["frozen"], *first)
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (shapes[0], shapes[1][1]))
            (frozen, *sums), _ = jax.lax.scan(add_part, (state["frozen"], *zeros), (parts, keys))
            gradients, logs = jax.tree.map(lambda total: total / accumulate, sums)
        updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = {"params": params, "frozen": frozen, "opt_state": opt_state}
        if average:
            current = {"params": params, "frozen": frozen}
            new["averages"] = moving_average(state["averages"], current, average, number)
        status = StepStatus(
            is_finite(logs["loss"]), is_finite(gradients), is_finite(new), signals.max()
        )
        all_finite = state["all_finite"] & status.loss_finite & status.gradient_finite
        all_finite &= status.params_finite
        old = {name: state[name] for name in new}
        new = jax.tree.map(lambda a, b: jnp.where(all_finite, a, b), new, old)
        return {**new, "all_finite": all_finite}, logs, status

    return step


def _in_parts(rows: Shaped[Array, "b ..."], count: int) -> Shaped[Array, "count p ..."]:
    """Split rows into parts; each takes as many of every device, so that no row changes its device."""
    return jnp.swapaxes(rows.reshape(-1, count, *rows.shape[1:]), 0, 1)
