"""Overlays: an X-ray and its masks as small images that a page holds inside itself.

Every mask is a transparent PNG of its own, so that a page can show and hide it, at the pixels it is
given at. Layers differ in colour (Okabe and Ito's, which the colour-blind tell apart) and also in the
dashes of their outlines.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from chexseg_jax.pathologies import PATHOLOGIES


@dataclass(frozen=True)
class Layer:
    """How one source of masks is drawn.

    Attributes:
        key: its name in `Example.layers`.
        title: its name on the page.
        colour: red, green and blue of its outline and its fill.
        opacity: of the fill, of 255.
        dash: (drawn, period) in pixels along the outline's diagonals; (1, 1) is a solid line.
        shown: whether the page opens with it.
    """

    key: str
    title: str
    colour: tuple[int, int, int]
    opacity: int
    dash: tuple[int, int] = (1, 1)
    shown: bool = False

    @property
    def css(self) -> str:
        """The colour as CSS writes it."""
        return "#{:02x}{:02x}{:02x}".format(*self.colour)


LAYERS: Final = (
    Layer("expert", "Expert", (0xF0, 0xE4, 0x42), 0, shown=True),
    Layer("reader", "Second reader", (0x2F, 0xC4, 0x9A), 0, (10, 16)),
    Layer("cam", "CAM", (0xCC, 0x79, 0xA7), 46, (5, 9)),
    Layer("seed", "Seed", (0xD5, 0x5E, 0x00), 46, (5, 17)),
    Layer("pseudo", "Pseudo-mask", (0xE6, 0x9F, 0x00), 46, (14, 19), shown=True),
    Layer("prediction", "Prediction", (0x56, 0xB4, 0xE9), 64, shown=True),
)
"""From bottom to top. The second reader's bluish green is lightened to stand out from a dark lung."""


SETS: Final = {
    False: (
        "Test images",
        "The best, the median and the worst of each pathology. Each number is the IoU of the "
        "prediction with the expert's mask. The CAM is drawn where probability times map exceeds "
        "its threshold.",
    ),
    True: (
        "Weakly labelled images",
        "What training makes of labels: the CAM, the seed, the pseudo-mask. Each number is the IoU "
        "of the pseudo-mask with the expert's mask, where there is one; training never sees it. "
        "CAM and pseudo-mask are drawn where the label is positive.",
    ),
}
"""What is shown of test images, and of weakly labelled ones: a title and a note."""


@dataclass(frozen=True)
class Example:
    """An image, the masks that different sources draw on it, and an IoU for each pathology.

    Attributes:
        image_id: as in the data.
        image: 8-bit grey values.
        layers: masks on the image's pixels, channels in the order of `PATHOLOGIES`, by `Layer.key`.
        scores: IoU with the expert's by pathology, where it is defined: of the prediction, or of
            the pseudo-mask where the image is weakly labelled.
        weak: whether the image is one of those that are weakly labelled.
    """

    image_id: str
    image: UInt8[np.ndarray, "h w"]
    layers: dict[str, Bool[np.ndarray, "h w k"]]
    scores: dict[str, float]
    weak: bool = False

    def __post_init__(self) -> None:
        """Refuses layers and scores that no page knows, and layers that do not fit the image."""
        known = [layer.key for layer in LAYERS]
        for name in self.scores:
            if name not in PATHOLOGIES:
                raise ValueError(f"{self.image_id}: score of {name!r:.80}, which is no pathology")
        for key, masks in self.layers.items():
            if key not in known:
                raise ValueError(f"{self.image_id}: layer {key!r} must be one of {known}")
            if masks.shape != (*self.image.shape, len(PATHOLOGIES)):
                raise ValueError(
                    f"{self.image_id}: layer {key!r} has shape {masks.shape}; bring it to the "
                    f"image's {self.image.shape} pixels and {len(PATHOLOGIES)} pathologies"
                )

    def drawn(self, key: str) -> list[int]:
        """Returns the pathologies that a layer holds at least one pixel of."""
        masks = self.layers.get(key)
        return [] if masks is None else np.flatnonzero(masks.any((0, 1))).tolist()


def nearest(
    masks: Shaped[np.ndarray, "h w k"], height: int, width: int
) -> Shaped[np.ndarray, "height width k"]:
    """Returns masks of another size, every pixel the nearest: what is coarse is to look coarse."""
    rows, columns = (
        np.arange(want) * have // want
        for have, want in zip(masks.shape, (height, width), strict=False)
    )
    return masks[rows][:, columns]


def grown(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Returns a mask and its four neighbours."""
    padded = np.pad(mask, 1)
    return mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def outline(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Returns the pixels of a mask, three deep, that touch what is outside it or outside the image."""
    outside = np.pad(~mask, 3, constant_values=True)
    return mask & grown(grown(grown(outside)))[3:-3, 3:-3]


def strokes(mask: Bool[np.ndarray, "h w"], layer: Layer) -> UInt8[np.ndarray, "h w"]:
    """Returns what a mask's pixels are: 0 nothing, 1 fill, 2 line, 3 a dark rim around it."""
    rows, columns = np.indices(mask.shape)
    drawn, period = layer.dash
    line = outline(mask) & ((rows + columns) % period < drawn)
    codes = mask.astype(np.uint8)
    codes[grown(mask) & ~mask] = 3
    codes[line] = 2
    return codes


def paints(layer: Layer) -> UInt8[np.ndarray, "4 4"]:
    """Returns red, green, blue and opacity of each of `strokes`' codes."""
    colours = [(0, 0, 0), layer.colour, layer.colour, (0, 0, 0)]
    alphas = [0, layer.opacity, 255, 110]
    return np.array([(*c, a) for c, a in zip(colours, alphas, strict=True)], np.uint8)


def mask_png(mask: Bool[np.ndarray, "h w"], layer: Layer) -> bytes:
    """Returns a mask as a transparent palette PNG."""
    image, table = Image.fromarray(strokes(mask, layer)).convert("P"), paints(layer)
    image.putpalette(table[:, :3].tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=table[:, 3].tobytes(), bits=2)
    return file.getvalue()


def image_jpeg(image: UInt8[np.ndarray, "h w"]) -> bytes:
    """Returns an X-ray as a JPEG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=88)
    return file.getvalue()


def painted(example: Example) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an X-ray with the masks that a page opens with, as one picture."""
    picture = np.repeat(example.image[..., None], 3, -1).astype(np.float32)
    for layer in (layer for layer in LAYERS if layer.shown):
        for k in example.drawn(layer.key):
            codes = strokes(example.layers[layer.key][..., k], layer)
            drawn = np.nonzero(codes)
            colours = paints(layer)[codes[drawn]].astype(np.float32)
            picture[drawn] += colours[:, 3:] / 255 * (colours[:, :3] - picture[drawn])
    return np.rint(picture).astype(np.uint8)


def data_uri(content: bytes, kind: str) -> str:
    """Returns bytes of a media type as a URI that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def described(example: Example) -> str:
    """Returns in words what is drawn on an image, for those who do not see it."""
    parts = []
    for layer in LAYERS:
        names = [PATHOLOGIES[k] for k in example.drawn(layer.key)]
        if layer.key in example.layers:
            parts.append(f"{layer.title}: {', '.join(names) or 'nothing'}")
    return f"Chest X-ray {example.image_id}. {'; '.join(parts)}."


def example_card(example: Example) -> str:
    """Returns one example as HTML: the X-ray, its masks on top, and its scores."""
    masks = [
        f'<img class="mask layer-{layer.key}" data-pathology="{k}" alt="" '
        f'src="{data_uri(mask_png(example.layers[layer.key][..., k], layer), "image/png")}">'
        for layer in LAYERS
        for k in example.drawn(layer.key)
    ]
    scores = {PATHOLOGIES.index(name): value for name, value in example.scores.items()}
    chips = [
        f'<li data-pathology="{k}" data-score="{value:.4f}">'
        f"{escape(PATHOLOGIES[k])} <b>{value:.2f}</b></li>"
        for k, value in sorted(scores.items())
        if value is not None and np.isfinite(value)
    ]
    height, width = example.image.shape
    return (
        f'<figure class="card"><button type="button" class="xray" '
        f'aria-label="Enlarge {escape(example.image_id)}" style="aspect-ratio:{width}/{height}">'
        f'<img alt="{escape(described(example))}" '
        f'src="{data_uri(image_jpeg(example.image), "image/jpeg")}">{"".join(masks)}</button>'
        f"<figcaption>{escape(example.image_id)}<ul>{''.join(chips)}</ul></figcaption></figure>"
    )


def gallery(examples: Sequence[Example], sets: Mapping[bool, tuple[str, str]] = SETS) -> str:
    """Returns all examples as HTML, with a switch for every layer, a menu of pathologies, and orders."""
    if not examples:
        return "<p>No examples were kept.</p>"
    used = [layer for layer in LAYERS if any(layer.key in example.layers for example in examples)]
    hidden = [f":root:has(#show-{layer.key}:not(:checked)) .layer-{layer.key}" for layer in used]
    switches = [
        f'<label style="--layer:{layer.css}"><input type="checkbox" id="show-{layer.key}" '
        f'data-digit="{LAYERS.index(layer) + 1}"{" checked" if layer.shown else ""}>'
        f'<i class="swatch {layer.key}"></i>{layer.title} <kbd>{LAYERS.index(layer) + 1}</kbd></label>'
        for layer in used
    ]
    found = sorted({k for example in examples for layer in used for k in example.drawn(layer.key)})
    options = [f'<option value="{k}">{escape(PATHOLOGIES[k])}</option>' for k in found]
    return (
        f"<style>{','.join(hidden)}{{display:none}}</style>"
        f'<form class="controls"><fieldset><legend>Layers</legend>{"".join(switches)}</fieldset>'
        f'<label>Pathology <select id="pathology"><option value="">all</option>{"".join(options)}'
        '</select></label><label>Order <select id="order"><option value="given">as given</option>'
        '<option value="best">best first</option><option value="median">median first</option>'
        '<option value="worst">worst first</option></select></label></form>'
        + "".join(
            f'<section class="set"><h3>{title}</h3><p class="note">{note}</p>'
            f'<div class="cards">{"".join(map(card, some))}</div></section>'
            for weak, (title, note) in sets.items()
            if (some := [example for example in examples if example.weak == weak])
        )
    )
