"""What readers drew, from CheXlocalize's JSON: run lengths, or the polygons they were made from."""

import json
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
    size_of,
)
from chexseg_jax.pathologies import PATHOLOGIES, canonical
from datasets.chexpert.layout import search_folders
from datasets.errors import DataError

Annotation = Mapping[str, Any]
"""One image's run lengths by pathology; or its `img_size` and, by pathology, its contours."""


def find_annotations(raw: Path, reader: str, split: str) -> Path | None:
    """Returns the file of a reader's drawings, run lengths rather than polygons, if there is one.

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
    """Returns the drawings in a file by image id.

    Raises:
        DataError: the file is no JSON, names something twice, or is no object of objects.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        named = dict(pairs)
        if len(named) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path}, field {twice!r:.80}: is there twice; delete one of the two")
        return named

    try:
        drawings = json.loads(path.read_bytes(), object_pairs_hook=unique)
    except DataError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({error}); restore it from the download") from None
    if not isinstance(drawings, dict):
        raise DataError(f"{path}: not an object by image id; restore it from the download")
    for image_id, drawing in drawings.items():
        if not isinstance(drawing, dict):
            raise DataError(
                f"{path}, {image_id!r:.80}: not an object; restore it from the download"
            )
    return drawings


def rasterise(drawing: Annotation) -> UInt16[np.ndarray, "h w"]:
    """Returns a drawing as a bitmask at its own size.

    Raises:
        MaskError: an unknown pathology, or run lengths or contours that are none.
    """
    if "img_size" not in drawing:
        for name, rle in drawing.items():
            if not isinstance(rle, dict):
                raise MaskError(f"{name}: run lengths must be an object")
        return pack_rles(drawing)
    height, width = size_of({"size": drawing["img_size"]})
    contours = {name: drawing[name] for name in drawing if name != "img_size"}
    rles = {}  # of ten large masks no more than one is held whole
    for name, lists in contours.items() or [("Cardiomegaly", [])]:
        mask = fill_polygons(_contours(name, lists, height, width), height, width)
        rles[name] = encode_rle(mask)
    return pack_rles(rles)


def _contours(name: str, contours: Any, height: int, width: int) -> list[list[tuple[float, float]]]:
    """Returns contours as lists of points, checked to lie on, or just beside, the image."""
    try:
        points = [[(float(x), float(y)) for x, y in contour] for contour in contours]
    except (TypeError, ValueError, OverflowError):
        raise MaskError(f"{name}: contours must be lists of [x, y] points") from None
    for x, y in (point for contour in points for point in contour):
        if not (abs(x) <= 2 * width and abs(y) <= 2 * height):  # nor is it NaN
            raise MaskError(f"{name}: a contour lies far outside the image")
    return points


def drawn_bits(drawing: Annotation) -> int:
    """Returns the pathologies that are drawn at all as the bits of a number, without the pixels.

    Raises:
        MaskError: an unknown pathology, or run lengths that are none.
    """
    bits = 0
    for name, value in drawing.items():
        if name == "img_size":
            continue
        if canonical(name) not in PATHOLOGIES:
            raise MaskError(f"unknown pathology {name!r:.80}")
        if "img_size" in drawing:
            drawn = bool(value)
        else:
            counts = value.get("counts") if isinstance(value, dict) else None
            if not isinstance(counts, str):
                raise MaskError(f"{name}: run lengths lack their `counts` string")
            drawn = bool(decode_counts(counts)[1::2].any())
        bits |= drawn << PATHOLOGIES.index(canonical(name))
    return bits
