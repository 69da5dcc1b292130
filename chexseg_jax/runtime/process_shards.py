"""Work that every process does a share of, and all need the whole of: validation, thresholds, gates."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int, Shaped


def shard_for_process(examples: int) -> Int[np.ndarray, "m"]:
    """Return the indices of this process's examples: every P-th of P processes.

    Where that leaves some processes with fewer, they wrap around to the start, so that all have as
    many, however few there are.
    """
    processes = jax.process_count()
    turns = np.arange(-(-examples // processes))
    return (jax.process_index() + processes * turns) % examples


def all_gather(found: Any, examples: int) -> Any:
    """Returns what all processes found for their shares, in the order of the examples.

    Every process must call it, and gets the same, bit for bit.

    Args:
        found: an array with a row for each example of this process's `share`, or a dataclass of them.
        examples: how many the source has.
    """
    if jax.process_count() == 1:
        return found
    if is_dataclass(found) and not isinstance(found, type):
        names = [field.name for field in fields(found)]
        return replace(
            found, **{name: all_gather(getattr(found, name), examples) for name in names}
        )
    rows: Shaped[np.ndarray, "m *s"] = np.ascontiguousarray(found)
    # As bytes: on the devices 64 bits would become 32.
    every = multihost_utils.process_allgather(rows.view(np.uint8).reshape(len(rows), -1))
    dealt = np.ascontiguousarray(np.swapaxes(np.asarray(every), 0, 1))  # row by row, then process
    return dealt.view(rows.dtype).reshape(-1, *rows.shape[1:])[:examples]
