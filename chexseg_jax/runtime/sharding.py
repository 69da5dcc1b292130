"""Meshes and placement: training uses every device of every process, inference a process's own."""

from typing import Any, Final

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

DAY: Final = 24 * 60 * 60 * 1000
"""Milliseconds that one process may work while the others wait; a lost one ends the wait sooner."""


def global_mesh() -> Mesh:
    """Returns all devices of all processes along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def local_mesh() -> Mesh:
    """Returns this process's devices along the axis `data`."""
    devices = np.asarray(jax.local_devices())
    return Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def replicated(over: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(over, PartitionSpec())


def shard_global_batch(batch: Any, over: Mesh) -> Any:
    """Returns a process's part of a batch as part of global arrays, split along their first axis."""
    sharding = NamedSharding(over, PartitionSpec("data"))
    parts = jax.tree.map(lambda v: jax.make_array_from_process_local_data(sharding, v), batch)
    return jax.block_until_ready(parts)  # see `memory`


def shard_local(arrays: Any, over: Mesh) -> Any:
    """Returns whole arrays split along their first axis over devices of this process."""
    placed = jax.device_put(arrays, NamedSharding(over, PartitionSpec("data")))
    return jax.block_until_ready(placed)  # see `memory`


def wait_for_all(name: str) -> None:
    """Waits until every process is here; alone it is at once.

    Not a collective of the devices: of those a peer may only be seconds late, and one process may make
    phantoms or a report for minutes.
    """
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=DAY)
