"""Device meshes and sharding: training uses all devices of all processes, inference the local ones."""

from typing import Any, Final

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

BARRIER_TIMEOUT_MS: Final = 24 * 60 * 60 * 1000
"""How long processes wait for one that works alone; a lost process ends the wait sooner."""


def global_mesh() -> Mesh:
    """Return all devices of all processes along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def local_mesh() -> Mesh:
    """Return this process's devices along the axis `data`."""
    devices = np.asarray(jax.local_devices())
    return Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_global_batch(batch: Any, mesh: Mesh) -> Any:
    """Make global arrays, sharded along their first axis, from every process's rows of a batch."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    arrays = jax.tree.map(lambda v: jax.make_array_from_process_local_data(sharding, v), batch)
    return jax.block_until_ready(arrays)  # see `cpu.keep_memory`


def shard_local(arrays: Any, mesh: Mesh) -> Any:
    """Shard arrays along their first axis over this process's devices."""
    sharded = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec("data")))
    return jax.block_until_ready(sharded)  # see `cpu.keep_memory`


def wait_for_all(name: str) -> None:
    """Wait until every process has reached this barrier; a single process does not wait.

    Not a collective of the devices, which time out within seconds, while one process may make phantoms
    or a report for minutes.
    """
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=BARRIER_TIMEOUT_MS)
