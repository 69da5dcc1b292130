"""One X-ray's results: masks at native size, figures, and pictures to look at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from chexseg_jax.images import content_slices, letterbox, unletterbox
from chexseg_jax.masks import encode_rle
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.radiographs.dicom_seg import write_segmentation
from chexseg_jax.radiographs.radiograph import Radiograph
from chexseg_jax.radiographs.read import is_dicom
from chexseg_jax.runtime.atomic_write import atomic_write
from experiments.prediction.inputs import InputFile
from experiments.report.overlays import Example, nearest, painted

SIDE = 512
"""The side of an overlay, pixels."""


@dataclass(frozen=True)
class RenderOptions:
    """How results are drawn, and where they go."""

    out: Path
    thresholds: Float[np.ndarray, "k"]
    overlays: bool
    maps: bool
    dicom_seg: bool
    fingerprint: str


def render_result(
    drawing: RenderOptions,
    task: InputFile,
    radiograph: Radiograph,
    maps: Float[np.ndarray, "s s k"],
) -> dict[str, Any]:
    """Writes an image's files and returns its line: run lengths and figures by finding."""
    height, width = radiograph.image.shape[:2]
    content = maps[content_slices(height, width, maps.shape[0])]
    masks = np.zeros((height, width, len(PATHOLOGIES)), bool)
    for k in range(len(PATHOLOGIES)):  # one at a time: ten maps of native size are large
        masks[..., k] = (
            unletterbox(maps[..., k : k + 1], height, width)[..., 0] > drawing.thresholds[k]
        )
    if drawing.overlays:
        picture = overlay(task, radiograph, masks)
        _write(drawing.out / "overlays" / f"{task.image_id}.png", picture)
    if drawing.maps:
        for k, name in enumerate(PATHOLOGIES):
            pixels = Image.fromarray(np.rint(maps[..., k] * 65535).astype(np.uint16))
            _write(drawing.out / "maps" / task.image_id / f"{name}.png", pixels)
    if drawing.dicom_seg and is_dicom(task.path) and masks.any():
        import pydicom

        source = pydicom.dcmread(task.path, stop_before_pixels=True)
        path = drawing.out / "dicom-seg" / f"{task.image_id}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_segmentation(path, source, masks, drawing.fingerprint)
    spacing = radiograph.spacing
    return {
        "size": [height, width],
        "spacing": vars(spacing) if spacing else None,
        "rles": {name: encode_rle(masks[..., k]) for k, name in enumerate(PATHOLOGIES)},
        "areas": masks.sum((0, 1)).tolist(),
        "greatest": content.max((0, 1)).round(6).tolist(),
        "means": content.mean((0, 1)).round(6).tolist(),
    }


def example(
    image_id: str,
    radiograph: Radiograph,
    masks: Bool[np.ndarray, "h w k"],
    scores: dict[str, float],
) -> Example:
    """Returns a picture of an X-ray and its masks, of the side of a page's card."""
    image = letterbox(radiograph.image, SIDE)[..., 0]
    framed = np.zeros((SIDE, SIDE, masks.shape[-1]), bool)
    rows, columns = content_slices(masks.shape[0], masks.shape[1], SIDE)
    framed[rows, columns] = nearest(masks, rows.stop - rows.start, columns.stop - columns.start)
    return Example(image_id, image, {"prediction": framed}, scores)


def overlay(
    task: InputFile, radiograph: Radiograph, masks: Bool[np.ndarray, "h w k"]
) -> Image.Image:
    """Returns an X-ray with its masks drawn on it."""
    return Image.fromarray(painted(example(task.image_id, radiograph, masks, {})))


def _write(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        picture.save(aside, "PNG", compress_level=1)  # four times as fast, a fifth larger
