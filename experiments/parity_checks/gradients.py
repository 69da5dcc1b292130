"""Gradients against the references', and what to make of one that jumps."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from experiments.parity_checks.fixtures import Arrays, Line, compare, failure

GRADIENT = 1e-3
ROUNDING = 1e-7
"""How far float32 rounds, about."""
ROUNDINGS = 8


Gradients = dict[str, np.ndarray]
"""By PyTorch's names, in its layout."""


def gradients(
    arrays: Arrays, gradient: Callable[[int], tuple[Gradients, Gradients]]
) -> Iterator[Line]:
    """Compares gradients and their norms, whose keys must be those of every trained tensor.

    A gradient jumps where the input of some ReLU is as near to zero as float32 rounds, and two
    implementations may then stand on either side. One that differs by more than its tolerance is
    compared again, for images that differ by their rounding.

    Args:
        arrays: the references, under `grad/` and `gradnorm/`.
        gradient: gives, for a number, what the two hold; for images as they are at 0, and for images
            rounded in another way at every other number.
    """

    @lru_cache
    def parts(number: int) -> dict[str, dict[str, Any]]:
        whole, normed = gradient(number)
        norms = {key: np.linalg.norm(value.astype(np.float64)) for key, value in normed.items()}
        return {"grad/": whole, "gradnorm/": norms}

    for prefix in ("grad/", "gradnorm/"):
        for key in arrays.under(prefix):
            line = first = compare_key(prefix, key, parts(0)[prefix], arrays, GRADIENT)
            for number in range(1, 1 + ROUNDINGS if key in parts(0)[prefix] else 1):
                if line.ok:
                    break
                other = compare_key(prefix, key, parts(number)[prefix], arrays, GRADIENT)
                line = min(line, other, key=lambda line: line.error)
            note = f"{first.error:.1e} before the images were rounded otherwise"
            yield line if line is first else replace(line, note=note)
    trained = {key for key in parts(0)["gradnorm/"] if not re.search(r"running_(mean|var)$", key)}
    for key in sorted(trained - set(arrays.under("gradnorm/"))):
        yield failure(f"gradnorm/{key}", "missing from the fixtures")


def rounded(images: jax.Array, number: int) -> jax.Array:
    """Returns images as float32 might as well have rounded them; as they are at 0."""
    if number == 0:
        return images
    noise = jax.random.normal(jax.random.key(number), images.shape)
    return images * (1 + ROUNDING * noise)


def compare_key(prefix: str, key: str, ours: Any, arrays: Arrays, tolerance: float) -> Line:
    """Compares what the fixtures keep under a key of PyTorch's."""
    reference = arrays[prefix + key]
    if key not in ours:
        return failure(prefix + key, "no tensor of ours has this name")
    return compare(prefix + key, ours[key], reference, tolerance)
