"""Meshes and placement: training uses every device of every process, inference a process's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


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
    return jax.tree.map(lambda v: jax.make_array_from_process_local_data(sharding, v), batch)


def compute_dtype() -> Any:
    """Returns bfloat16 where the hardware multiplies it faster, else float32."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
