"""What a result was made with: the versions of Python and of packages."""

import platform
from collections.abc import Iterable
from importlib.metadata import version


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns versions by name, Python's first."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
