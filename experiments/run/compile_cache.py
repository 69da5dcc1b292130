"""Persistent compilation cache in the workdir, so that a second start takes seconds.

Functions compiled for a CPU may use any of its instructions and would crash a CPU without them, so each
kind of machine has its own folder.
"""

import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import jax
from jax.experimental.compilation_cache import compilation_cache

CPUINFO: Final = Path("/proc/cpuinfo")
MIN_COMPILE_SECONDS: Final = 0.5
"""Functions that compile faster are not cached."""


def machine_id() -> str:
    """Return an identifier of JAX, the architecture and the CPU's instruction sets."""
    parts = [jax.__version__, platform.machine(), platform.processor()]
    if CPUINFO.exists():
        lines = CPUINFO.read_text().splitlines()
        parts += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@contextmanager
def persistent_compilation_cache(workdir: Path) -> Iterator[None]:
    """Cache functions compiled in this context in `<workdir>/compiled`."""
    changes = {
        "jax_compilation_cache_dir": str((workdir / "compiled" / machine_id()).absolute()),
        "jax_persistent_cache_min_compile_time_secs": MIN_COMPILE_SECONDS,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    try:
        for name, value in changes.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
