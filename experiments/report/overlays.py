"""Overlays: an X-ray and its masks as small images that a page embeds.

Each mask is a transparent PNG of its own, so that the page can show and hide it. Layers differ in color
(the color-blind safe palette of Okabe and Ito) and in the dashes of their outlines.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

from chexseg_jax.pathologies import PATHOLOGIES


@dataclass(frozen=True)
class Layer:
    """The style of one source of masks.

    Attributes:
        key: its name in `Example.layers`.
        title: its name on the page.
        color: red, green and blue of outline and fill.
        opacity: of the fill, 0 to 255.
        dash: (length, period) of dashes, pixels along the diagonals; (1, 1) is a solid line.
        visible: whether the page opens with it.
    """

    key: str
    title: str
    color: tuple[int, int, int]
    opacity: int
    dash: tuple[int, int] = (1, 1)
    visible: bool = False

    @property
    def css(self) -> str:
        """The color in CSS."""
        return "#{:02x}{:02x}{:02x}".format(*self.color)


LAYERS: Final = (
    Layer("expert", "Expert", (0xF0, 0xE4, 0x42), 0, visible=True),
    Layer("reader", "Second reader", (0x2F, 0xC4, 0x9A), 0, (10, 16)),
    Layer("cam", "CAM", (0xCC, 0x79, 0xA7), 46, (5, 9)),
    Layer("seed", "Seed", (0xD5, 0x5E, 0x00), 46, (5, 17)),
    Layer("pseudo", "Pseudo-mask", (0xE6, 0x9F, 0x00), 46, (14, 19), visible=True),
    Layer("prediction", "Prediction", (0x56, 0xB4, 0xE9), 64, visible=True),
)
"""From bottom to top. The second reader's bluish green is lightened to stand out from a dark lung."""

GROUPS: Final = {
    False: (
        "Test images",
        "The best, the median and the worst of each pathology. Each number is the IoU of the "
        "prediction with the expert mask. The CAM is the mask of probability times map above "
        "its threshold.",
    ),
    True: (
        "Weakly labelled images",
        "What training derives from labels: the CAM, the seed, the pseudo-mask. Each number is the "
        "IoU of the pseudo-mask with the expert mask, if there is one; training never sees it. "
        "CAM and pseudo-mask are given for positive labels.",
    ),
}
"""Title and note of the test images (False) and of the weakly labelled images (True)."""


@dataclass(frozen=True)
class Example:
    """An image with the masks of several sources and an IoU per pathology.

    Attributes:
        image_id: as in the data.
        image: 8-bit gray values.
        layers: masks at the image's size by `Layer.key`, channels in the order of `PATHOLOGIES`.
        scores: IoU with the expert mask by pathology, where defined: of the prediction, or of the
            pseudo-mask if the image is weakly labelled.
        weak: whether the image is weakly labelled.
        seen: the letterboxed image that the network saw.
    """

    image_id: str
    image: UInt8[np.ndarray, "h w"]
    layers: dict[str, Bool[np.ndarray, "h w k"]]
    scores: dict[str, float]
    weak: bool = False
    seen: UInt8[np.ndarray, "s s"] | None = None

    def __post_init__(self) -> None:
        """Check names and shapes."""
        keys = [layer.key for layer in LAYERS]
        for name in self.scores:
            if name not in PATHOLOGIES:
                raise ValueError(f"{self.image_id}: score of {name!r:.80}, which is no pathology")
        for key, masks in self.layers.items():
            if key not in keys:
                raise ValueError(f"{self.image_id}: layer {key!r} must be one of {keys}")
            if masks.shape != (*self.image.shape, len(PATHOLOGIES)):
                raise ValueError(
                    f"{self.image_id}: layer {key!r} has shape {masks.shape}; bring it to the "
                    f"image's {self.image.shape} pixels and {len(PATHOLOGIES)} pathologies"
                )

    def nonempty(self, layer: Layer) -> list[int]:
        """Return the pathologies whose mask in a layer is not empty."""
        masks = self.layers.get(layer.key)
        return [] if masks is None else np.flatnonzero(masks.any((0, 1))).tolist()


def resize_nearest(
    masks: Shaped[np.ndarray, "h w *k"], height: int, width: int
) -> Shaped[np.ndarray, "height width *k"]:
    """Resize masks by nearest neighbours, so that a coarse mask looks coarse."""
    rows, columns = (
        np.arange(new) * old // new
        for old, new in zip(masks.shape[:2], (height, width), strict=True)
    )
    return masks[rows][:, columns]


def outline(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the inner boundary of a mask, three pixels wide; the image's border bounds it too."""
    return mask & ~binary_erosion(mask, iterations=3)


def mask_codes(mask: Bool[np.ndarray, "h w"], layer: Layer) -> UInt8[np.ndarray, "h w"]:
    """Return each pixel's index into `palette`: 0 nothing, 1 fill, 2 line, 3 a dark rim outside."""
    rows, columns = np.indices(mask.shape)
    length, period = layer.dash
    codes = mask.astype(np.uint8)
    codes[binary_dilation(mask) & ~mask] = 3
    codes[outline(mask) & ((rows + columns) % period < length)] = 2
    return codes


def palette(layer: Layer) -> UInt8[np.ndarray, "4 4"]:
    """Return red, green, blue and opacity of each code."""
    colors = [(0, 0, 0), layer.color, layer.color, (0, 0, 0)]
    opacities = [0, layer.opacity, 255, 110]
    return np.array([(*c, a) for c, a in zip(colors, opacities, strict=True)], np.uint8)


def mask_png(mask: Bool[np.ndarray, "h w"], layer: Layer) -> bytes:
    """Encode a mask as a transparent palette PNG."""
    image, colors = Image.fromarray(mask_codes(mask, layer)).convert("P"), palette(layer)
    image.putpalette(colors[:, :3].tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=colors[:, 3].tobytes(), bits=2)
    return file.getvalue()


def image_jpeg(image: UInt8[np.ndarray, "h w"]) -> bytes:
    """Encode an X-ray as JPEG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=88)
    return file.getvalue()


def blend_masks(example: Example) -> UInt8[np.ndarray, "h w 3"]:
    """Blend an X-ray with the masks that a page opens with into one RGB image."""
    blended = np.repeat(example.image[..., None], 3, -1).astype(np.float32)
    for layer in (layer for layer in LAYERS if layer.visible):
        for k in example.nonempty(layer):
            codes = mask_codes(example.layers[layer.key][..., k], layer)
            pixels = np.nonzero(codes)
            colors = palette(layer)[codes[pixels]].astype(np.float32)
            blended[pixels] += colors[:, 3:] / 255 * (colors[:, :3] - blended[pixels])
    return np.rint(blended).astype(np.uint8)


def data_uri(content: bytes, media_type: str) -> str:
    """Return bytes as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def alt_text(example: Example) -> str:
    """Describe an image and its masks in words, for screen readers."""
    parts = [
        f"{layer.title}: {', '.join(PATHOLOGIES[k] for k in example.nonempty(layer)) or 'nothing'}"
        for layer in LAYERS
        if layer.key in example.layers
    ]
    return f"Chest X-ray {example.image_id}. {'; '.join(parts)}."


def example_card(example: Example) -> dict[str, Any]:
    """Return what the page shows of an example: the X-ray, its masks and its scores."""
    masks = [
        (layer.key, k, data_uri(mask_png(example.layers[layer.key][..., k], layer), "image/png"))
        for layer in LAYERS
        for k in example.nonempty(layer)
    ]
    scores = [(k, name, example.scores.get(name)) for k, name in enumerate(PATHOLOGIES)]
    return {
        "image_id": example.image_id,
        "size": example.image.shape,
        "alt": alt_text(example),
        "image": data_uri(image_jpeg(example.image), "image/jpeg"),
        "seen": None if example.seen is None else data_uri(image_jpeg(example.seen), "image/jpeg"),
        "masks": masks,
        "scores": [score for score in scores if score[2] is not None and np.isfinite(score[2])],
    }


def gallery(
    examples: Sequence[Example], groups: Mapping[bool, tuple[str, str]]
) -> dict[str, Any] | None:
    """Return the page's gallery: switches of layers, a menu of pathologies, and groups of cards.

    Args:
        examples: to show; None is returned without any.
        groups: title and note of the group of each value of `Example.weak`.
    """
    if not examples:
        return None
    layers = [layer for layer in LAYERS if any(layer.key in e.layers for e in examples)]
    pathologies = sorted({k for e in examples for layer in layers for k in e.nonempty(layer)})
    members = {weak: [e for e in examples if e.weak == weak] for weak in groups}
    return {
        "seen": any(e.seen is not None for e in examples),
        "layers": [(digit, layer) for digit, layer in enumerate(LAYERS, 1) if layer in layers],
        "pathologies": [(k, PATHOLOGIES[k]) for k in pathologies],
        "groups": [
            {"title": title, "note": note, "cards": [example_card(e) for e in members[weak]]}
            for weak, (title, note) in groups.items()
            if members[weak]
        ],
    }
