"""Slices of TPUs by name, described by their compiler; or the devices at hand."""

import os
import re
from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from chexseg_jax.runtime.memory import free_bytes
from experiments.benchmarks.roofline import Peak, data_sheet_peak, peak_of

MEGACORE: Final = ("v4", "v5p")
"""Chips of two cores that work as one device; libtpu takes only some of them so without being told."""
GENERATIONS: Final = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
"""Generations that libtpu compiles for, and the number of sides of their slices."""
WITHOUT_TPU: Final = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""Environment in which libtpu asks no metadata server, of which there is none, and locks no chip."""


class TopologyError(ValueError):
    """A topology that cannot be compiled for."""


@dataclass(frozen=True)
class Slice:
    """The devices that a run would have."""

    name: str
    training: Mesh
    """All devices of all processes."""
    inference: Mesh
    """The devices of one process."""
    peak: Peak
    memory: float
    """Bytes that a function may have on a device."""

    @property
    def platform(self) -> str:
        """The platform of its devices, as JAX names it."""
        return str(self.training.devices.flat[0].platform)

    @property
    def kind(self) -> str:
        """The kind of its devices."""
        return str(self.training.devices.flat[0].device_kind)


def open_slice(name: str, slices: int = 1) -> Slice:
    """Describe the slice of a name, such as `v5e:4x4`, or the devices at hand: `cpu`, `cuda`.

    Args:
        name: generation and chips.
        slices: how many of them work together through the hosts' network.

    Raises:
        TopologyError: there is no such slice or device, or the package libtpu is missing.
    """
    if name in ("cpu", "cuda"):
        return _devices_at_hand(name, slices)
    generation, _, sides = name.partition(":")
    if generation not in GENERATIONS or not re.fullmatch(r"\d+(x\d+)+", sides):
        raise TopologyError(
            f"--topology {name}: name a slice as GENERATION:CHIPS with one of "
            f"{', '.join(GENERATIONS)}, such as v5e:4x4 or v5p:2x2x1, or cpu or cuda"
        )
    if sides.count("x") + 1 != GENERATIONS[generation]:
        raise TopologyError(
            f"--topology {name}: a slice of {generation} has {GENERATIONS[generation]} sides, such as "
            f"{generation}:{'x'.join(['2', '2', '1'][: GENERATIONS[generation]])}"
        )
    devices = _described(name, slices)
    # The last host's: of some slices, libtpu 0.0.42 refuses the first host's chips, and only those.
    host = [device for device in devices if device.process_index == devices[-1].process_index]
    peak = data_sheet_peak(devices[0].device_kind)
    if peak is None or peak.memory is None:
        raise TopologyError(
            f"--topology {name}: {devices[0].device_kind} is not in the chips' table"
        )
    return Slice(name, _mesh(devices), _mesh(host), peak, peak.memory)


def prepare_jax(name: str) -> None:
    """Set up JAX, and libtpu without a TPU, to compile for a topology; call it before any use of JAX."""
    if name == "cuda":
        return
    jax.config.update("jax_platforms", "cpu")
    if name != "cpu":
        for variable, value in WITHOUT_TPU.items():
            os.environ.setdefault(variable, value)


def _described(name: str, slices: int) -> list[Any]:
    """Return the devices of a slice, as libtpu describes them."""
    generation, _, sides = name.partition(":")
    more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if generation in MEGACORE:
        more["chip_config_name"] = "megacore"
    if set(sides) == {"1", "x"}:
        more["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(name, "tpu", **more).devices)
    except Exception as error:  # of several types; libtpu's own are plain runtime errors
        message = str(error).splitlines()[0]
        if "libtpu" in message and "lockfile" not in message:
            raise TopologyError(
                "--topology needs the compiler of TPUs: pip install 'chexseg-jax[tpu]'"
            ) from None
        raise TopologyError(f"--topology {name}: {message}") from None


def _devices_at_hand(name: str, slices: int) -> Slice:
    if slices > 1:
        raise TopologyError(f"--slices is for TPUs; --topology {name} takes the devices at hand")
    try:
        devices = jax.devices(name)
    except RuntimeError:
        raise TopologyError(
            f"--topology {name}: JAX finds no such device; for a GPU, pip install 'chexseg-jax[cuda]'"
        ) from None
    peak = peak_of(devices[0])
    memory = free_bytes(devices[0]) or peak.memory or float("inf")
    return Slice(name, _mesh(devices), _mesh(jax.local_devices(backend=name)), peak, memory)


def _mesh(devices: list[Any]) -> Mesh:
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))
