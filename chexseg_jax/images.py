"""Pixel conventions: the letterbox, its inverse, and normalisation.

Every stage works in one frame, the letterbox: the long side is scaled to `size` (sizes truncate, as in
CheXseg) and the rest is zero, centred. The release computes CAMs in a centre crop and then stretches
them over the whole image, which displaces them; here one frame serves classifier, CAMs and segmenter,
and `unletterbox` is its exact inverse. Resizing filters when it shrinks, where the release aliases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8, UInt16
from PIL import Image

from chexseg_jax.masks import unpack


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of pixels on [0, 1], a channel each; part of a network's weights."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: UInt8[Array, "b h w 1"]) -> Float[Array, "b h w 3"]:
        """Returns 8-bit grey images as the three channels a network reads."""
        mean, std = (jnp.asarray(v, jnp.float32) for v in (self.mean, self.std))
        pixels = jnp.broadcast_to(images.astype(jnp.float32) / 255, (*images.shape[:3], 3))
        return (pixels - mean[None, None, None]) / std[None, None, None]


IMAGENET: Final = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CHEXPERT: Final = Normalization((0.5020,) * 3, (0.085585,) * 3)
XRV: Final = Normalization((0.5,) * 3, (1 / 2048,) * 3)
"""torchxrayvision's range of [-1024, 1024]."""


def content_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns the (height, width) that an image occupies in a letterbox of `size` pixels."""
    longest = max(height, width)
    return max(1, height * size // longest), max(1, width * size // longest)


def content_slices(height: int, width: int, size: int) -> tuple[slice, slice]:
    """Returns where in a letterbox of `size` pixels an image of (height, width) lies."""
    h, w = content_size(height, width, size)
    top, left = (size - h) // 2, (size - w) // 2
    return slice(top, top + h), slice(left, left + w)


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns a 2-D uint8 or float32 array resized bilinearly, with a filter when it shrinks."""
    if pixels.shape == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def letterbox(image: UInt8[np.ndarray, "h w 1"], size: int) -> UInt8[np.ndarray, "s s 1"]:
    """Returns an image scaled to fit a square of `size` pixels, centred, padded with black."""
    height, width = image.shape[:2]
    framed = np.zeros((size, size, 1), np.uint8)
    framed[content_slices(height, width, size)] = resize(
        image[..., 0], *content_size(height, width, size)
    )[..., None]
    return framed


def letterbox_masks(bits: UInt16[np.ndarray, "h w"], size: int) -> UInt8[np.ndarray, "s s k"]:
    """Returns a bitmask as ten masks in the letterbox; a pixel is set if half of it is covered."""
    height, width = bits.shape
    h, w = content_size(height, width, size)
    masks = unpack(bits)
    framed = np.zeros((size, size, masks.shape[-1]), np.uint8)
    where = content_slices(height, width, size)
    for k in range(masks.shape[-1]):
        if masks[..., k].any():
            framed[(*where, k)] = resize(masks[..., k] * np.uint8(255), h, w) >= 128
    return framed


def unletterbox(
    maps: Float[np.ndarray, "s s k"], height: int, width: int
) -> Float[np.ndarray, "h w k"]:
    """Returns maps in the letterbox as maps over the image of (height, width) they were made from."""
    content = maps[content_slices(height, width, maps.shape[0])]
    planes = [
        resize(np.ascontiguousarray(content[..., k], np.float32), height, width)
        for k in range(content.shape[-1])
    ]
    return np.stack(planes, -1)


def content_mask(sizes: Sequence[tuple[int, int]], size: int) -> Bool[np.ndarray, "b s s"]:
    """Returns where letterboxes of `size` pixels hold image rather than padding."""
    inside = np.zeros((len(sizes), size, size), bool)
    for framed, (height, width) in zip(inside, sizes, strict=True):
        framed[content_slices(height, width, size)] = True
    return inside
