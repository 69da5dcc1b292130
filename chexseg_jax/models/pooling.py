"""Pooling of a classifier's cells into logits: the mean of the features, or log-sum-exp of the logits.

The mean (`gap`) is DenseNet's own. It rewards evidence spread over the whole image, so that maps are
broad. Log-sum-exp (`lse`) classifies every cell and takes a smooth maximum of the cells' logits, which
lets small findings keep small maps (Pinheiro & Collobert 2015; Wang et al. 2017, ChestX-ray8).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Float

Head = Callable[[Float[Array, "*b c"]], Float[Array, "*b n"]]


@dataclass(frozen=True)
class Pooling:
    """How the cells of a feature map become one logit for each output."""

    kind: Literal["gap", "lse"] = "gap"
    """gap: the mean of the features; lse: log-sum-exp of each cell's logits, without the padding."""
    sharpness: float = 5.0
    """Of `lse`: near 0 it is the mean, towards infinity the maximum."""

    def __post_init__(self) -> None:
        if self.sharpness <= 0:
            raise ValueError(f"the sharpness of pooling must be positive, got {self.sharpness}")

    def __call__(
        self,
        maps: Float[Array, "b fh fw c"],
        head: Head,
        content: Float[Array, "b fh fw"] | None = None,
    ) -> Float[Array, "b n"]:
        """Return the logits of an image from its (non-negative) features.

        Args:
            maps: features of every cell.
            head: a linear map from features to logits.
            content: the fraction of each cell that is image and not padding, the cell's weight under
                `lse`; all cells weigh the same if None, or if no cell holds any image.
        """
        if self.kind == "gap":
            return head(maps.mean((1, 2)))
        logits = head(maps)
        weights = jnp.ones(maps.shape[:3], jnp.float32) if content is None else content
        total = weights.sum((1, 2), keepdims=True)
        weights = jnp.where(total > 0, weights, 1)
        weights = weights / weights.sum((1, 2), keepdims=True)
        pooled = logsumexp(self.sharpness * logits, (1, 2), b=weights[..., None])
        return pooled / self.sharpness


GAP = Pooling()
