"""Annotations from CheXlocalize's JSON: run lengths, or the polygons they were made from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt16

from chexseg_jax.masks import (
    MaskError,
    decode_counts,
    encode_rle,
    fill_polygons,
    pack_rles,
    read_image_objects,
    size_of,
)
from chexseg_jax.pathologies import PATHOLOGIES, canonical
from datasets.chexpert.layout import search_folders
from datasets.errors import DataError

Annotation = Mapping[str, Any]
"""One image's run lengths by pathology; or its `img_size` and its contours by pathology."""


def find_annotations(raw: Path, reader: str, split: str) -> Path | None:
    """Find a reader's file; run lengths take precedence over polygons.

    Args:
        raw: the folder of the download.
        reader: `gt`, or `hb` for the human benchmark.
        split: `val` or `test`.
    """
    for kind in ("segmentations", "annotations"):
        for folder in search_folders(raw):
            path = folder / f"{reader}_{kind}_{split}.json"
            if path.is_file():
                return path
    return None


def read_annotations(path: Path) -> dict[str, Annotation]:
    """Read the annotations in a file by image id.

    Raises:
        DataError: the file is not JSON, has a duplicate key, or is not an object of objects.
    """
    try:
        return dict(read_image_objects(path))
    except MaskError as error:
        raise DataError(str(error)) from None


def rasterise(annotation: Annotation) -> UInt16[np.ndarray, "h w"]:
    """Rasterise an annotation to a bitmask at its own size.

    Raises:
        MaskError: an unknown pathology, or malformed run lengths or contours.
    """
    if "img_size" not in annotation:
        for name, rle in annotation.items():
            if not isinstance(rle, dict):
                raise MaskError(f"{name}: run lengths must be an object")
        return pack_rles(annotation)
    height, width = size_of({"size": annotation["img_size"]})
    contours = {name: annotation[name] for name in annotation if name != "img_size"}
    rles = {}  # of one decoded mask at a time
    for name, lists in contours.items() or [(PATHOLOGIES[0], [])]:  # one empty mask has the size
        mask = fill_polygons(_contours(name, lists, height, width), height, width)
        rles[name] = encode_rle(mask)
    return pack_rles(rles)


def _contours(name: str, contours: Any, height: int, width: int) -> list[list[tuple[float, float]]]:
    """Parse contours; their points must lie within twice the image's size."""
    try:
        points = [[(float(x), float(y)) for x, y in contour] for contour in contours]
    except (TypeError, ValueError, OverflowError):
        raise MaskError(f"{name}: contours must be lists of [x, y] points") from None
    for x, y in (point for contour in points for point in contour):
        if not (abs(x) <= 2 * width and abs(y) <= 2 * height):  # nor is it NaN
            raise MaskError(f"{name}: a contour lies far outside the image")
    return points


def presence_bits(annotation: Annotation) -> int:
    """Encode which pathologies are annotated as bits, without decoding masks.

    Raises:
        MaskError: an unknown pathology, or malformed run lengths.
    """
    bits = 0
    for name, value in annotation.items():
        if name == "img_size":
            continue
        if canonical(name) not in PATHOLOGIES:
            raise MaskError(f"unknown pathology {name!r:.80}")
        if "img_size" in annotation:
            is_present = bool(value)
        else:
            counts = value.get("counts") if isinstance(value, dict) else None
            if not isinstance(counts, str):
                raise MaskError(f"{name}: run lengths lack their `counts` string")
            is_present = bool(decode_counts(counts)[1::2].any())
        bits |= is_present << PATHOLOGIES.index(canonical(name))
    return bits
