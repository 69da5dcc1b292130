"""Compare gradients with the references', allowing for jumps at ReLUs."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from experiments.parity_checks.fixtures import Comparison, ReferenceArrays, compare_values, failure

GRADIENT_TOLERANCE = 1e-3
ROUNDING = 1e-7
"""The relative rounding error of float32, approximately."""
ROUNDINGS = 8

Gradients = dict[str, np.ndarray]
"""By PyTorch's names, in its layout."""


def compare_gradients(
    arrays: ReferenceArrays, gradients_of: Callable[[int], tuple[Gradients, Gradients]]
) -> Iterator[Comparison]:
    """Compare gradients and their norms; the references must hold every trained tensor's norm.

    A gradient jumps where a ReLU's input is as close to zero as float32 rounds, and two implementations
    may fall on different sides. A gradient that exceeds its tolerance is therefore compared again for
    images with other rounding errors.

    Args:
        arrays: the references, under `grad/` and `gradnorm/`.
        gradients_of: returns the gradients for both prefixes, given the number of a rounding; see
            `perturb_rounding`.
    """

    @lru_cache
    def by_prefix(number: int) -> dict[str, dict[str, Any]]:
        gradients, plain = gradients_of(number)
        norms = {key: np.linalg.norm(value.astype(np.float64)) for key, value in plain.items()}
        return {"grad/": gradients, "gradnorm/": norms}

    for prefix in ("grad/", "gradnorm/"):
        for key in arrays.suffixes(prefix):

            def compare(number: int, prefix: str = prefix, key: str = key) -> Comparison:
                ours = by_prefix(number)[prefix]
                return compare_tensor(prefix, key, ours, arrays, GRADIENT_TOLERANCE)

            best = first = compare(0)
            for number in range(1, 1 + ROUNDINGS if key in by_prefix(0)[prefix] else 1):
                if best.ok:
                    break
                best = min(best, compare(number), key=lambda comparison: comparison.error)
            note = f"{first.error:.1e} before the images were rounded otherwise"
            yield best if best is first else replace(best, note=note)
    trained = {k for k in by_prefix(0)["gradnorm/"] if not re.search(r"running_(mean|var)$", k)}
    for key in sorted(trained - set(arrays.suffixes("gradnorm/"))):
        yield failure(f"gradnorm/{key}", "missing from the fixtures")


def perturb_rounding(images: jax.Array, number: int) -> jax.Array:
    """Return images with other rounding errors, or unchanged for number 0."""
    if number == 0:
        return images
    noise = jax.random.normal(jax.random.key(number), images.shape)
    return images * (1 + ROUNDING * noise)


def compare_tensor(
    prefix: str, key: str, ours: Any, arrays: ReferenceArrays, tolerance: float
) -> Comparison:
    """Compare the tensor of a PyTorch name with the fixtures' array of that name and prefix."""
    reference = arrays[prefix + key]
    if key not in ours:
        return failure(prefix + key, "no tensor of ours has this name")
    return compare_values(prefix + key, ours[key], reference, tolerance)
