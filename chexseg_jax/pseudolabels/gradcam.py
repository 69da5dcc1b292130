"""Grad-CAM: class activation maps of every output of a classifier's head.

The head's vector-Jacobian product is vmapped over the outputs; the backbone runs once and is never
differentiated. The gradient is that of the logit, as in the paper. The release differentiates the
probability, which scales each map by a positive factor.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def grad_cam(
    features: Float[Array, "b fh fw c"],
    classify: Callable[[Float[Array, "b fh fw c"]], Float[Array, "b n"]],
    outputs: Sequence[int] | None = None,
) -> tuple[Float[Array, "b fh fw k"], Float[Array, "b n"]]:
    """Compute the non-negative maps of `outputs` (all of them if None), and the logits.

    A map is ReLU(sum_c a_c A_c), where a_c is the gradient of the logit averaged over the cells
    (paper §3.3; Selvaraju et al. 2017, eq. 1-2). It is not normalized.
    """
    logits, vjp = jax.vjp(classify, features)
    rows = jnp.eye(logits.shape[-1], dtype=logits.dtype)
    if outputs is not None:
        rows = rows[np.asarray(outputs)]

    def weights(row: Float[Array, "n"]) -> Float[Array, "b c"]:
        (gradients,) = vjp(jnp.broadcast_to(row[None], logits.shape))
        return gradients.astype(jnp.float32).mean((1, 2))

    cams = jnp.einsum("kbc,bhwc->bhwk", jax.vmap(weights)(rows), features.astype(jnp.float32))
    return jax.nn.relu(cams), logits


def normalize_cams(cams: Float[Array, "b fh fw k"]) -> Float[Array, "b fh fw k"]:
    """Divide maps by their maximum; a map of zeros stays zero."""
    peaks = cams.max((1, 2), keepdims=True)
    return cams / jnp.where(peaks > 0, peaks, 1)


def upsample_cams(
    cams: Float[Array, "b fh fw k"], content: Bool[Array, "b h w"]
) -> Float[Array, "b h w k"]:
    """Upsample maps bilinearly, set them to zero outside the content, and divide them by their maximum.

    Padding is no image: a map's peak there would lower everything inside.
    """
    shape = (*content.shape, cams.shape[-1])
    maps = jax.image.resize(cams.astype(jnp.float32), shape, "linear")
    return normalize_cams(maps * content[..., None])
