"""Shard examples over processes and all-gather the results: validation, thresholds, gates."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int, Shaped


def shard_for_process(examples: int) -> Int[np.ndarray, "m"]:
    """Return the indices of this process's examples: every P-th of P processes.

    Where that leaves some processes with fewer, they wrap around to the start, so that all shards have
    the same length.
    """
    processes = jax.process_count()
    rounds = np.arange(-(-examples // processes))
    return (jax.process_index() + processes * rounds) % examples


def all_gather(local: Any, examples: int) -> Any:
    """Gather the results of all processes for their shards, in the order of the examples.

    Every process must call it, and gets the same, bit for bit.

    Args:
        local: an array with a row for each example of this process's shard, or a dataclass of them.
        examples: the number of examples of all shards.
    """
    if jax.process_count() == 1:
        return local
    if is_dataclass(local) and not isinstance(local, type):
        names = [field.name for field in fields(local)]
        return replace(
            local, **{name: all_gather(getattr(local, name), examples) for name in names}
        )
    rows: Shaped[np.ndarray, "m *s"] = np.ascontiguousarray(local)
    # As bytes: on devices 64 bits would become 32.
    gathered = multihost_utils.process_allgather(rows.view(np.uint8).reshape(len(rows), -1))
    # Process, row to row, process: the order in which `shard_for_process` deals the examples.
    ordered = np.ascontiguousarray(np.swapaxes(np.asarray(gathered), 0, 1))
    return ordered.view(rows.dtype).reshape(-1, *rows.shape[1:])[:examples]
