"""Compiled functions stay in the work folder, so that a second start takes seconds.

Those of a CPU may use any instruction that it has, and would crash one that lacks it: each kind of
machine has a folder of its own.
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
WORTH_KEEPING: Final = 0.5
"""Seconds of compilation from which on a function is kept."""


def machine() -> str:
    """Returns a name for machines that can run what this one compiles."""
    described = [jax.__version__, platform.machine(), platform.processor()]
    if CPUINFO.exists():
        lines = CPUINFO.read_text().splitlines()
        described += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]


@contextmanager
def persistent_compilation_cache(workdir: Path) -> Iterator[None]:
    """What is compiled in here is kept in `<workdir>/compiled`, and taken from there."""
    changes = {
        "jax_compilation_cache_dir": str((workdir / "compiled" / machine()).absolute()),
        "jax_persistent_cache_min_compile_time_secs": WORTH_KEEPING,
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
