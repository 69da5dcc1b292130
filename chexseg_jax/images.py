"""Pixel conventions: the letterbox, its inverse, bilinear resizing and normalization.

Every stage works in the letterbox: the long side is scaled to `size` (sizes truncate, as in CheXseg),
the image is centred and the rest is zero. The release computes CAMs in a centre crop and then stretches
them over the whole image, which displaces them; here classifier, CAMs and segmenter share one frame,
and `unletterbox` is its inverse. Downsampling is antialiased, unlike the release's. Masks of native size
are handled one pathology at a time: ten planes of a radiograph and their copies take 260 MB.
"""

from dataclasses import dataclass
from typing import Final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8, UInt16
from PIL import Image

from chexseg_jax.masks import unpack_plane
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.photometry import Photometry, adjust


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of pixels on [0, 1] by channel, as a network's weights expect them."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: UInt8[Array, "b h w 1"]) -> Float[Array, "b h w 3"]:
        """Normalize 8-bit grey images and repeat them over three channels."""
        mean, std = (jnp.asarray(v, jnp.float32) for v in (self.mean, self.std))
        pixels = jnp.broadcast_to(images.astype(jnp.float32) / 255, (*images.shape[:3], 3))
        return (pixels - mean[None, None, None]) / std[None, None, None]


IMAGENET: Final = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CHEXPERT: Final = Normalization((0.5020,) * 3, (0.085585,) * 3)
XRV: Final = Normalization((0.5,) * 3, (1 / 2048,) * 3)
"""torchxrayvision's range of [-1024, 1024]."""


def content_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Return the (height, width) of an image inside a letterbox of `size` pixels."""
    longest = max(height, width)
    return max(1, height * size // longest), max(1, width * size // longest)


def content_slices(height: int, width: int, size: int) -> tuple[slice, slice]:
    """Return the rows and columns of an image of (height, width) in a letterbox of `size` pixels."""
    h, w = content_size(height, width, size)
    top, left = (size - h) // 2, (size - w) // 2
    return slice(top, top + h), slice(left, left + w)


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a 2-D uint8 or float32 array bilinearly, with antialiasing where it shrinks."""
    if pixels.shape == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def resize_mask(
    mask: Bool[np.ndarray, "h w"], height: int, width: int
) -> Bool[np.ndarray, "h2 w2"]:
    """Resize a mask; a pixel is set if at least half of it is covered."""
    levels = np.ascontiguousarray(mask).view(np.uint8) * np.uint8(255)
    return resize(levels, height, width) >= 128


def letterbox(
    image: UInt8[np.ndarray, "h w 1"], size: int, photometry: Photometry = "as-is"
) -> UInt8[np.ndarray, "s s 1"]:
    """Scale an image to fit a square of `size` pixels, adjusted, centred and padded with black."""
    height, width = image.shape[:2]
    result = np.zeros((size, size, 1), np.uint8)
    content = resize(image[..., 0], *content_size(height, width, size))
    result[content_slices(height, width, size)] = adjust(content, photometry)[..., None]
    return result


def letterbox_masks(bits: UInt16[np.ndarray, "h w"], size: int) -> UInt8[np.ndarray, "s s k"]:
    """Convert a bitmask to ten masks in the letterbox."""
    height, width = bits.shape
    result = np.zeros((size, size, len(PATHOLOGIES)), np.uint8)
    inside = content_slices(height, width, size)
    present = int(np.bitwise_or.reduce(bits, axis=None))
    for k in range(len(PATHOLOGIES)):
        if present >> k & 1:
            mask = resize_mask(unpack_plane(bits, k), *content_size(height, width, size))
            result[(*inside, k)] = mask
    return result


def unletterbox(
    maps: Float[np.ndarray, "s s k"], height: int, width: int
) -> Float[np.ndarray, "h w k"]:
    """Resize maps in the letterbox to the image of (height, width) that they were made from."""
    planes = [unletterbox_plane(maps[..., k], height, width) for k in range(maps.shape[-1])]
    return np.stack(planes, -1)


def unletterbox_plane(
    plane: Float[np.ndarray, "s s"], height: int, width: int
) -> Float[np.ndarray, "h w"]:
    """Resize one map in the letterbox to the image of (height, width) that it was made from."""
    content = plane[content_slices(height, width, plane.shape[0])]
    return resize(np.ascontiguousarray(content, np.float32), height, width)


def content_mask(images: UInt8[Array, "b h w 1"]) -> Bool[Array, "b h w"]:
    """Return the content of letterboxes: the smallest box around an image's non-zero pixels.

    From the pixels alone, so that it follows an augmented image; black margins count as padding.
    """
    lit = images[..., 0] > 0

    def between(lines: Bool[Array, "b n"]) -> Bool[Array, "b n"]:
        """Set whatever lies between the first and the last line that is set."""
        return jnp.logical_and(jnp.cumsum(lines, 1) > 0, jnp.cumsum(lines[:, ::-1], 1)[:, ::-1] > 0)

    return between(lit.any(2))[:, :, None] & between(lit.any(1))[:, None]


def content_cells(
    images: UInt8[Array, "b h w 1"], height: int, width: int
) -> Bool[Array, "b height width"]:
    """Return the cells of a coarser grid of which at least half is content."""
    return content_fractions(content_mask(images), height, width) >= 0.5


def content_fractions(
    content: Bool[Array, "b h w"], height: int, width: int
) -> Float[Array, "b height width"]:
    """Return the fraction of each cell of a coarser grid that is content.

    Raises:
        ValueError: the grid does not divide the image.
    """
    b, h, w = content.shape
    if h % height or w % width:
        raise ValueError(f"{h} x {w} pixels do not divide into {height} x {width} cells")
    cells = content.reshape(b, height, h // height, width, w // width)
    return cells.astype(jnp.float32).mean((2, 4))
