"""The versions of Python and of packages, recorded with every result."""

import platform
from collections.abc import Iterable
from importlib.metadata import version


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return versions by name, Python's first."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
