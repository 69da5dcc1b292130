"""Dense CRF: mean-field refinement of binary masks, and the seeds of IRNet.

A fully connected CRF with pydensecrf's two kernels, symmetric normalization and self-connections
(Krähenbühl and Koltun 2011), but exact: no permutohedral lattice. Kernel rows are computed in tiles and
discarded, so memory is linear in the number of cells. It agrees with pydensecrf on at least 99.3 % of
pixels, on every platform: no distance comes from a matrix product, whose operands an accelerator rounds
to TF32 or bfloat16, and products with the kernels ask for the highest precision. The release seeds all
ten pathologies in every image, present or not; `seeds_from_cams` marks absent ones as background and
uncertain ones as ignored.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from chexseg_jax.pseudolabels.gradcam import normalize_cams

TILE = 512
"""Kernel rows in memory at once."""
EXACT = jax.lax.Precision.HIGHEST
"""Products in float32 on every platform."""


@dataclass(frozen=True)
class CrfConfig:
    """The CRF's settings; the defaults are IRNet's and CheXseg's."""

    iterations: int = 10
    confidence: float = 0.7  # initial probability of a cell's label
    smoothness: float = 3.0  # strength of the Gaussian kernel
    smoothness_reach: float = 3.0  # its standard deviation, pixels
    appearance: float = 10.0  # strength of the bilateral kernel
    appearance_reach: float = 50.0  # its standard deviation, pixels
    appearance_contrast: float = 5.0  # its standard deviation, grey levels of 255


def _gaussian(maps: Float[Array, "h w k"], reach: float, stride: float) -> Float[Array, "h w k"]:
    """Apply the Gaussian kernel, which separates into rows and columns."""

    def kernel(cells: int) -> Float[Array, "n n"]:
        positions = jnp.arange(cells) * stride
        return jnp.exp(-0.5 * ((positions[:, None] - positions[None]) / reach) ** 2)

    kernels = kernel(maps.shape[0]), kernel(maps.shape[1])
    return jnp.einsum("ab,cd,bdk->ack", *kernels, maps, precision=EXACT)


def _squared_distances(
    rows: Float[Array, "t f"], columns: Float[Array, "n f"]
) -> Float[Array, "t n"]:
    """Sum the squares of broadcast differences over the few features, which XLA fuses."""
    total = jnp.zeros((len(rows), len(columns)))
    for row, column in zip(rows.T, columns.T, strict=True):
        total += (row[:, None] - column[None]) ** 2
    return total


def _bilateral(
    maps: Float[Array, "n k"], features: Float[Array, "m f"], tile: int
) -> Float[Array, "n k"]:
    """Apply the kernel exp(-|f - f'|^2 / 2); `features` are padded to a multiple of `tile`."""
    cells = maps.shape[0]

    def kernel_rows(rows: Float[Array, "t f"]) -> Float[Array, "t k"]:
        kernel = jnp.exp(-0.5 * _squared_distances(rows, features[:cells]))
        return jnp.matmul(kernel, maps, precision=EXACT)

    tiles = features.reshape(-1, tile, features.shape[-1])
    return jax.lax.map(kernel_rows, tiles).reshape(-1, maps.shape[-1])[:cells]


def refine(
    labels: Bool[Array, "b h w k"],
    images: Num[Array, "b h w 1"],
    config: CrfConfig = CrfConfig(),
    *,
    stride: float = 1.0,
) -> Float[Array, "b h w k"]:
    """Refine binary maps by mean-field inference, each independently, and return probabilities.

    Images are grey levels of 0-255 on the labels' grid, whose cells are `stride` pixels apart.
    """
    height, width = labels.shape[1:3]
    cells = height * width
    tile = min(TILE, cells)
    ys, xs = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    grid = jnp.stack([ys, xs], -1).reshape(cells, 2) * (stride / config.appearance_reach)

    def one(example: tuple[Bool[Array, "h w k"], Num[Array, "h w 1"]]) -> Float[Array, "h w k"]:
        label, image = example
        # pydensecrf sees a grey image as three equal channels: the contrast counts three times.
        grey = image.reshape(cells, 1).astype(jnp.float32) / config.appearance_contrast
        features = jnp.concatenate([grid, grey * 3**0.5], -1)
        features = jnp.pad(features, ((0, -cells % tile), (0, 0)))

        def gaussian(maps: Float[Array, "h w k"]) -> Float[Array, "h w k"]:
            return _gaussian(maps, config.smoothness_reach, stride)

        def bilateral(maps: Float[Array, "h w k"]) -> Float[Array, "h w k"]:
            return _bilateral(maps.reshape(cells, -1), features, tile).reshape(maps.shape)

        ones = jnp.ones((height, width, 1))
        near_norm, alike_norm = gaussian(ones) ** -0.5, bilateral(ones) ** -0.5
        logit = jnp.log(config.confidence / (1 - config.confidence))
        unary = jnp.where(label, logit, -logit)

        def step(_, logits: Float[Array, "h w k"]) -> Float[Array, "h w k"]:
            spins = jnp.tanh(logits / 2)  # 2q - 1
            smoothed = config.smoothness * near_norm * gaussian(near_norm * spins)
            return unary + smoothed + config.appearance * alike_norm * bilateral(alike_norm * spins)

        return jax.nn.sigmoid(jax.lax.fori_loop(0, config.iterations, step, unary))

    return jax.vmap(one)((labels, images))


def seeds_from_cams(
    cams: Float[Array, "b h w k"],
    images: Num[Array, "b h w 1"],
    labels: Int[Array, "b k"],
    config: CrfConfig = CrfConfig(),
    *,
    foreground: float,
    background: float,
    stride: float,
) -> Int[Array, "b h w k"]:
    """Make seeds: 1 foreground, 0 background, -1 ignore (IRNet, Ahn et al. 2019, §4.1).

    The masks above the thresholds `foreground` and `background` of the normalized map are refined by the
    CRF. A cell of the first is foreground, one of the second alone is ignored, one of neither is
    background. A pathology is background everywhere if its label is 0, ignored everywhere if it is -1.
    """
    maps = normalize_cams(cams)
    masks = jnp.concatenate([maps > foreground, maps > background], -1)
    inner, outer = jnp.split(refine(masks, images, config, stride=stride) > 0.5, 2, axis=-1)
    seeds = jnp.where(inner, 1, jnp.where(outer, -1, 0))
    label = labels[:, None, None, :]
    is_present = (maps.max((1, 2), keepdims=True) > 0) & (label == 1)
    return jnp.where(is_present, seeds, jnp.where(label < 0, -1, 0)).astype(jnp.int8)
