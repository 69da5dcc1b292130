"""One step of a training: gradient, update, and a guard that lets no state through that is not finite.

A step is one compiled function of the whole mesh. What it found goes back with it, so that every
process learns the same at the same step: whether the numbers were finite, and whether any process
was asked to stop.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from chexseg_jax.runtime.cpu import compiler_options
from chexseg_jax.training.checkpoints import split_state

Batch = dict[str, Any]
Logs = dict[str, Float[Array, ""]]
Objective = Callable[[Any, Batch, Key[Array, ""], Any], tuple[Float[Array, ""], Logs]]


class StepStatus(NamedTuple):
    """What a step found beside its loss."""

    loss: Bool[Array, ""]
    gradient: Bool[Array, ""]
    weights: Bool[Array, ""]
    asked: Int[Array, ""]

    def broken(self) -> str | None:
        """Returns what is not finite, None if all is."""
        parts = {"loss": self.loss, "gradient": self.gradient, "weights": self.weights}
        return next((name for name, is_finite in parts.items() if not is_finite), None)


def is_finite(tree: Any) -> Bool[Array, ""]:
    """Returns whether every number of a tree is finite."""
    leaves = [v for v in jax.tree.leaves(tree) if jnp.issubdtype(v.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def init_state(
    model: nnx.Module, optimiser: optax.GradientTransformation, trained: nnx.filterlib.Filter
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Returns a model's structure, and the state that a training starts from."""
    structure, learned, kept = split_state(model, trained)
    memory = optimiser.init(learned)
    return structure, {
        "learned": learned,
        "kept": kept,
        "optimiser": memory,
        "sound": jnp.ones((), bool),
    }


def make_step(
    structure: nnx.GraphDef,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    key: Key[Array, ""],
    trained: nnx.filterlib.Filter = nnx.Param,
) -> jax.stages.Wrapped:
    """Returns the compiled step of a training; it gives the memory of the state it takes away.

    Called with (state, batch, number, asks, context), where `number` picks the step's randomness and
    `asks` holds, for each device, the signal its process got, or 0. A step whose loss, gradient or
    result is not finite leaves the state as it was, and so does every step after it.
    """

    @partial(jax.jit, donate_argnums=0, compiler_options=compiler_options())
    def advance(
        state: dict[str, Any],
        batch: Batch,
        number: Int[Array, ""],
        asks: Int[Array, "d"],
        context: Any,
    ) -> tuple[dict[str, Any], Logs, StepStatus]:
        def loss_of(learned: Any) -> tuple[Float[Array, ""], tuple[Any, Logs]]:
            model = nnx.merge(structure, learned, state["kept"], copy=True)
            loss, logs = objective(model, batch, jax.random.fold_in(key, number), context)
            return loss, (split_state(model, trained)[2], {"loss": loss, **logs})

        gradients, (kept, logs) = jax.grad(loss_of, has_aux=True)(state["learned"])
        updates, memory = optimiser.update(gradients, state["optimiser"], state["learned"])
        learned = optax.apply_updates(state["learned"], updates)
        following = {"learned": learned, "kept": kept, "optimiser": memory}
        found = StepStatus(
            is_finite(logs["loss"]), is_finite(gradients), is_finite(following), asks.max()
        )
        sound = state["sound"] & found.loss & found.gradient & found.weights
        before = {name: state[name] for name in following}
        following = jax.tree.map(lambda new, old: jnp.where(sound, new, old), following, before)
        return {**following, "sound": sound}, logs, found

    return advance
