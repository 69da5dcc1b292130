"""Compare the memory that a compiled function needs with what is free, before it runs.

XLA knows a function's memory once it is compiled. On a CPU nothing else does in time: the kernel kills a
process that takes more than there is, without a word.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import jax

from chexseg_jax.runtime.cpu import return_freed_memory

CGROUP_FILES: Final = {
    "": ("memory.max", "memory.current"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}
"""The limit and the use of a control group, of version 2 and of version 1, by their controller."""


def needed_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the bytes that a call allocates on a device beside its arguments; 0 if unknown."""
    sizes = compiled.memory_analysis()
    if sizes is None:
        return 0
    return sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes


def free_bytes(device: jax.Device) -> int | None:
    """Return the bytes that this process may still take for one of its devices; None if unknown.

    A CPU device has its share of what the machine and the process's control groups leave.
    """
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        if not {"bytes_limit", "bytes_in_use"} <= stats.keys():
            return None
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return_freed_memory()
    free = [*_free_in_machine(Path("/proc/meminfo"))]
    free += free_in_cgroups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return min(free) // jax.local_device_count() if free else None


def free_in_cgroups(memberships: Path, root: Path) -> Iterator[int]:
    """Yield the bytes free in each control group of a process that has a limit.

    Args:
        memberships: `/proc/self/cgroup`.
        root: where the control groups are mounted. Inside a container it is the process's own group,
            and the paths of the memberships do not exist there.
    """
    for line in memberships.read_text().splitlines() if memberships.is_file() else ():
        _, controllers, path = line.split(":", 2)
        for controller in CGROUP_FILES.keys() & controllers.split(","):
            mount = root / controller
            group = mount / path.lstrip("/")
            for folder in (group, *group.parents):
                limit, used = (folder / name for name in CGROUP_FILES[controller])
                if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
                    in_use = int(used.read_text()) - _cache_in_cgroup(folder / "memory.stat")
                    yield max(0, int(limit.read_text()) - in_use)
                if folder == mount:
                    break


def _cache_in_cgroup(stat: Path) -> int:
    """Return the bytes of files in memory, which the kernel drops before it kills."""
    rows = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    return sum(int(rows.get(name, 0)) for name in ("active_file", "inactive_file"))


def _free_in_machine(meminfo: Path) -> Iterator[int]:
    """Yield the bytes that Linux would find without swapping."""
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else ():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
