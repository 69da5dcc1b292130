"""What a finished run has come to: a digest of every result, without dates and durations."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.killing.lives import begin, finish

PASSING = {"finished", "created", "seconds", "reused", "stages", "times", "workdir"}
"""Fields that say when, how long and where, not what."""


def without_times(content: Any) -> Any:
    """Returns JSON's content without dates, durations and places."""
    if isinstance(content, dict):
        return {key: without_times(v) for key, v in content.items() if key not in PASSING}
    return [without_times(v) for v in content] if isinstance(content, list) else content


def arrays(step: Path) -> str:
    """Returns the digest of all arrays of one checkpoint, by their names."""
    total = hashlib.sha256()
    for item in ("parameters", "statistics", "optimiser"):
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.restore(step.absolute() / item)
        for name, leaf in jax.tree_util.tree_leaves_with_path(tree):
            total.update(f"{item}{jax.tree_util.keystr(name)}".encode())
            total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()


def digests(workdir: Path, of: tuple[str, ...] = ("",)) -> dict[str, str]:
    """Returns a digest for each checkpoint and each other file of a work folder.

    Args:
        workdir: the folder.
        of: how the names of the folders in it start that count.
    """
    found = {}
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir)
        if not str(name).startswith(of):
            continue
        if path.is_dir():
            if path.parent.name == "checkpoints" and path.name.isdigit():
                found[str(name)] = arrays(path)
            continue
        if path.name == ".lock" or {"checkpoints", "compiled", "tensorboard"} & set(name.parts):
            continue
        if path.suffix == ".html":  # shows the stages' durations; report.json is compared
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.dumps(without_times(json.loads(content))).encode()
        found[str(name)] = hashlib.sha256(content).hexdigest()
    return found


def look(workdir: Path, of: tuple[str, ...] = ("",)) -> dict[str, str]:
    """Returns the digests of a folder, taken by a process of its own: this one never uses JAX."""
    out = workdir.with_name(f"{workdir.name}.digests")
    said, cache = workdir.with_name("digests.log"), workdir.with_name("cache")
    if finish(begin(lambda: out.write_text(json.dumps(digests(workdir, of))), said, cache)):
        raise SystemExit(said.read_text())
    return json.loads(out.read_text())
