"""The platform that networks are built and functions are compiled for.

It is this machine's, unless functions are compiled ahead of time for another: precision and compiler
options follow the target, so that what is compiled here is what runs there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import jax

_PLATFORM: Final[ContextVar[str | None]] = ContextVar("platform", default=None)


def target_platform() -> str:
    """Return the target, a name of JAX's: `cpu`, `gpu` or `tpu`; by default this machine's."""
    return _PLATFORM.get() or jax.default_backend()


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Build and compile for a platform within this context."""
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)
