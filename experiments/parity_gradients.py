"""Gradients against the references', and what to make of one that jumps."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.fixtures import Arrays, Line, compare, failure

GRADIENT = 1e-3
ROUNDING = 1e-7
"""How far float32 rounds, about."""
ROUNDINGS = 8


def gradients(
    arrays: Arrays,
    ours: dict[str, np.ndarray],
    plain: dict[str, np.ndarray],
    rounded: Callable[[int], dict[str, np.ndarray]] | None = None,
) -> Iterator[Line]:
    """Compares gradients and their norms, whose keys must be those of every trained tensor.

    A gradient jumps where the input of some ReLU is as near to zero as float32 rounds, and two
    implementations may then stand on either side. One that differs by more than its tolerance is
    compared again, as `rounded` gives it for images that differ by their rounding.
    """
    for key in arrays.under("grad/"):
        line = compare_key("grad/", key, ours, arrays, GRADIENT)
        for seed in range(ROUNDINGS if rounded is not None else 0):
            if line.ok or rounded is None:
                break
            other = compare_key("grad/", key, rounded(seed), arrays, GRADIENT)
            note = f"{line.error:.1e} before the images were rounded otherwise"
            line = replace(other, note=line.note or note) if other.error < line.error else line
        yield line
    norms = {key: np.linalg.norm(value.astype(np.float64)) for key, value in plain.items()}
    named = arrays.under("gradnorm/")
    for key in named:
        yield compare_key("gradnorm/", key, norms, arrays, GRADIENT)
    trained = {key for key in plain if not re.search(r"running_(mean|var)$", key)}
    for key in sorted(trained - set(named)):
        yield failure(f"gradnorm/{key}", "missing from the fixtures")


def compare_key(prefix: str, key: str, ours: Any, arrays: Arrays, tolerance: float) -> Line:
    """Compares what the fixtures keep under a key of PyTorch's."""
    reference = arrays[prefix + key]
    if key not in ours:
        return failure(prefix + key, "no tensor of ours has this name")
    return compare(prefix + key, ours[key], reference, tolerance)
