"""Work that every process does a share of, and all need the whole of: validation, thresholds, gates."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped

from chexseg_jax.data import Source, Subset


def share(source: Source) -> Source:
    """Returns every P-th example, of P processes; where that leaves some with fewer, from the start.

    So all have as many, however few there are.
    """
    processes, examples = jax.process_count(), len(source)
    if processes == 1:
        return source
    turns = np.arange(-(-examples // processes))
    return Subset(source, (jax.process_index() + processes * turns) % examples)


def gathered(found: Any, examples: int) -> Any:
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
        return replace(found, **{name: gathered(getattr(found, name), examples) for name in names})
    rows: Shaped[np.ndarray, "m *s"] = np.ascontiguousarray(found)
    # As bytes: on the devices 64 bits would become 32.
    every = multihost_utils.process_allgather(rows.view(np.uint8).reshape(len(rows), -1))
    dealt = np.ascontiguousarray(np.swapaxes(np.asarray(every), 0, 1))  # row by row, then process
    return dealt.view(rows.dtype).reshape(-1, *rows.shape[1:])[:examples]
