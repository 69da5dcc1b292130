"""Render the prediction of one X-ray: masks at native size, their measurements, and image files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from chexseg_jax.images import content_slices, letterbox, unletterbox_plane
from chexseg_jax.masks import encode_rle
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.radiographs.dicom import read_header
from chexseg_jax.radiographs.dicom_seg import write_segmentation
from chexseg_jax.radiographs.radiograph import Radiograph, RadiographError, error_text
from chexseg_jax.radiographs.read import is_dicom
from chexseg_jax.runtime.atomic_write import WriteError, atomic_write
from experiments.prediction.inputs import InputFile
from experiments.report.overlays import Example, blend_masks, resize_nearest

SIDE = 512
"""The side of an overlay, pixels."""


@dataclass(frozen=True)
class RenderOptions:
    """Thresholds, and which files are written where."""

    out: Path
    thresholds: Float[np.ndarray, "k"]
    overlays: bool
    maps: bool
    dicom_seg: bool
    fingerprint: str


def render_result(
    options: RenderOptions,
    file: InputFile,
    radiograph: Radiograph,
    maps: Float[np.ndarray, "s s k"],
) -> dict[str, Any]:
    """Write the files of an X-ray and return its run lengths and measurements by pathology.

    What cannot be written for reasons of this X-ray is named under `fault`.

    Raises:
        WriteError: the disk is full or read-only.
    """
    height, width = radiograph.image.shape[:2]
    content = maps[content_slices(height, width, maps.shape[0])]
    result: dict[str, Any] = {
        "size": [height, width],
        "spacing": vars(radiograph.spacing) if radiograph.spacing else None,
        "rles": {},
        "areas": [],
        "greatest": content.max((0, 1)).round(6).tolist(),
        "means": content.mean((0, 1)).round(6).tolist(),
    }
    segments = options.dicom_seg and is_dicom(file.path)
    masks = np.zeros((height, width, len(PATHOLOGIES)), bool) if segments else None
    thumbnails = []
    for k, name in enumerate(PATHOLOGIES):  # one at a time: ten masks of native size are large
        mask = unletterbox_plane(maps[..., k], height, width) > options.thresholds[k]
        result["rles"][name] = encode_rle(mask)
        result["areas"].append(int(mask.sum()))
        if options.overlays:
            thumbnails.append(mask_thumbnail(mask))
        if masks is not None:
            masks[..., k] = mask
    faults: list[str] = []
    if options.overlays:
        path = options.out / "overlays" / f"{file.stem}.png"
        with _collect_faults(path, faults):
            overlay = blend_masks(prediction_example(file.image_id, radiograph, thumbnails, {}))
            _write_png(path, overlay)
    if options.maps:
        folder = options.out / "maps" / file.stem
        with _collect_faults(folder, faults):
            for k, name in enumerate(PATHOLOGIES):
                levels = np.rint(maps[..., k] * 65535).astype(np.uint16)
                _write_png(folder / f"{name}.png", levels)
    if masks is not None and masks.any():
        path = options.out / "dicom-seg" / f"{file.stem}.dcm"
        with _collect_faults(path, faults):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_segmentation(path, read_header(file.path), masks, options.fingerprint)
    return result | ({"fault": "; ".join(faults)} if faults else {})


@contextmanager
def _collect_faults(path: Path, faults: list[str]) -> Iterator[None]:
    """Note why a file could not be written; errors of the disk, which concern all files, pass."""
    try:
        yield
    except WriteError:
        raise
    except RadiographError as error:
        faults.append(str(error))
    except Exception as error:  # of Pillow, pydicom, the file system: one file never ends a batch
        faults.append(f"{path}: cannot be written ({error_text(error)}); rename the X-ray")


def mask_thumbnail(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "s s"]:
    """Letterbox a mask to the side of an overlay."""
    thumbnail = np.zeros((SIDE, SIDE), bool)
    rows, columns = content_slices(mask.shape[0], mask.shape[1], SIDE)
    size = rows.stop - rows.start, columns.stop - columns.start
    thumbnail[rows, columns] = resize_nearest(mask, *size)
    return thumbnail


def prediction_example(
    image_id: str,
    radiograph: Radiograph,
    thumbnails: Sequence[Bool[np.ndarray, "s s"]],
    scores: dict[str, float],
    seen: UInt8[np.ndarray, "h w"] | None = None,
) -> Example:
    """Return an X-ray, the thumbnails of its masks and what the network saw as an example of a page."""
    image = letterbox(radiograph.image, SIDE)[..., 0]
    return Example(image_id, image, {"prediction": np.stack(thumbnails, -1)}, scores, seen=seen)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        # Level 1 is four times as fast as the default and a fifth larger.
        Image.fromarray(pixels).save(temporary, "PNG", compress_level=1)
