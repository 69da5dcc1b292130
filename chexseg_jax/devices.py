"""Meshes and placement: training uses every device of every process, inference a process's own."""

from functools import cache
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

DAY: Final = 24 * 60 * 60 * 1000
"""Milliseconds that one process may work while the others wait; a lost one ends the wait sooner."""

ON_CPUS: Final = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
"""What XLA's compiler for CPUs is told, if it knows it."""


def mesh() -> Mesh:
    """Returns all devices of all processes along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def local_mesh() -> Mesh:
    """Returns this process's devices along the axis `data`."""
    devices = np.asarray(jax.local_devices())
    return Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def replicated(over: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(over, PartitionSpec())


def divided(batch: Any, over: Mesh) -> Any:
    """Returns a process's part of a batch as part of global arrays, split along their first axis."""
    sharding = NamedSharding(over, PartitionSpec("data"))
    parts = jax.tree.map(lambda v: jax.make_array_from_process_local_data(sharding, v), batch)
    return jax.block_until_ready(parts)  # see `memory`


def split(arrays: Any, over: Mesh) -> Any:
    """Returns whole arrays split along their first axis over devices of this process."""
    placed = jax.device_put(arrays, NamedSharding(over, PartitionSpec("data")))
    return jax.block_until_ready(placed)  # see `memory`


def compute_dtype() -> Any:
    """Returns bfloat16 where the hardware multiplies it faster, else float32."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


@cache
def compiler_options() -> dict[str, str]:
    """Returns what XLA is told when it compiles a network.

    On CPUs it would leave convolutions and sums to YNNPACK: its sums are faster than XLA's own loops,
    its convolutions slower than Eigen's (`docs/performance.md`).
    """
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=ON_CPUS).lower().compile()
    except jax.errors.JaxRuntimeError:  # an experimental option: another XLA may lack it
        return {}
    return ON_CPUS


def wait_for_all(name: str) -> None:
    """Waits until every process is here; alone it is at once.

    Not a collective of the devices: of those a peer may only be seconds late, and one process may make
    phantoms or a report for minutes.
    """
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=DAY)
