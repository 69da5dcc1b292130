"""Digests of the results of a run, without dates and durations."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from chexseg_jax.training.checkpoints import ITEMS
from tests.killing.processes import finish, start

VOLATILE = {"finished", "created", "seconds", "reused", "stages", "times", "workdir"}
"""JSON fields of dates, durations and paths."""


def without_times(content: Any) -> Any:
    """Return JSON content without volatile fields."""
    if isinstance(content, dict):
        return {key: without_times(v) for key, v in content.items() if key not in VOLATILE}
    return [without_times(v) for v in content] if isinstance(content, list) else content


def checkpoint_digest(step: Path) -> str:
    """Return the digest of all arrays of a checkpoint, with their names."""
    digest = hashlib.sha256()
    for item in ITEMS:
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.restore(step.absolute() / item)
        for name, leaf in jax.tree_util.tree_leaves_with_path(tree):
            digest.update(f"{item}{jax.tree_util.keystr(name)}".encode())
            digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def folder_digests(workdir: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, str]:
    """Return a digest of each checkpoint and each other file of a work folder.

    Args:
        workdir: the folder.
        prefixes: of the names to include.
    """
    digests = {}
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir)
        if not str(name).startswith(prefixes):
            continue
        if path.is_dir():
            if path.parent.name == "checkpoints" and path.name.isdigit():
                digests[str(name)] = checkpoint_digest(path)
            continue
        if path.name == ".lock" or {"checkpoints", "compiled", "tensorboard"} & set(name.parts):
            continue
        if path.suffix == ".html":  # shows the stages' durations; report.json is compared
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.dumps(without_times(json.loads(content))).encode()
        digests[str(name)] = hashlib.sha256(content).hexdigest()
    return digests


def digests_of(workdir: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, str]:
    """Return `folder_digests`, computed in a process of its own: this one must not use JAX."""
    out = workdir.with_name(f"{workdir.name}.digests")
    log, cache = workdir.with_name("digests.log"), workdir.with_name("cache")
    if finish(
        start(lambda: out.write_text(json.dumps(folder_digests(workdir, prefixes))), log, cache)
    ):
        raise SystemExit(log.read_text())
    return json.loads(out.read_text())


def differences(digests: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Return the names whose digests differ."""
    return sorted(n for n in {*digests, *expected} if digests.get(n) != expected.get(n))
