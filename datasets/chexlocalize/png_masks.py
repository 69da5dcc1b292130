"""Masks as PNG files, one a finding.

A file is `IMAGE/FINDING.png` or `IMAGE_FINDING.png`, where IMAGE is the image's path without suffix, or
its file's name, and FINDING one of the ten pathologies, in any case, with spaces or underscores.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool
from PIL import Image

from chexseg_jax.masks import encode_rle
from chexseg_jax.pathologies import ALIASES, PATHOLOGIES
from chexseg_jax.radiographs.read import is_companion
from datasets.errors import Fault, Faults

_FINDINGS: Final = {name.lower().replace(" ", "_"): name for name in PATHOLOGIES} | {
    written.lower().replace(" ", "_"): name for written, name in ALIASES.items()
}


def read_png_masks(
    folder: Path, image_ids: Mapping[str, str], faults: Faults
) -> dict[str, dict[str, Any]]:
    """Read all masks below a folder as run lengths, by image id and pathology.

    Args:
        folder: the folder; everything below it that ends in .png is read.
        image_ids: the id of each image by its names, joined by underscores.
        faults: what to do with a file that is no mask of an image.

    Raises:
        Fault: a file names no image or no finding, or is not a grey PNG of at most two values.
    """
    masks: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*.png")):
        if is_companion(path):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix().replace("/", "_")
        ends = list(_ends(name))
        matches = [(image_ids[image], end) for image, end in ends if image in image_ids]
        try:
            if not ends:
                reason = f"names no finding; end its name in one of {', '.join(_FINDINGS)}"
                raise Fault(path, name, "", reason)
            if not matches:
                reason = "no image of that name in the table; add its row, or delete the file"
                raise Fault(path, ends[0][0], ends[0][1], reason)
            image_id, finding = matches[0]
            if finding in masks.get(image_id, {}):
                raise Fault(path, image_id, finding, "there are two such masks; delete one")
            mask = _read_mask(path, image_id, finding)
        except Fault as fault:
            faults.add(fault)
            continue
        masks.setdefault(image_id, {})[finding] = encode_rle(mask)
    return masks


def _ends(name: str) -> Iterator[tuple[str, str]]:
    """Yield each way to read a name as an image's and a finding's."""
    plain = name.lower().replace(" ", "_")
    for written, finding in _FINDINGS.items():
        if plain.endswith(f"_{written}"):
            yield name[: -len(written) - 1], finding


def _read_mask(path: Path, image_id: str, finding: str) -> Bool[np.ndarray, "h w"]:
    """Read one mask: what is not 0 is set."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as file:
                values = np.asarray(file)
    except Exception as error:  # Pillow's decoder raises anything from OSError to struct.error
        reason = f"no readable PNG ({error!s:.80}); write it again"
        raise Fault(path, image_id, finding, reason) from None
    if values.ndim != 2:
        reason = "has several channels; write a grey PNG, 0 for background and 255 for the finding"
        raise Fault(path, image_id, finding, reason)
    if (count := len(np.unique(values))) > 2:
        reason = f"has {count} grey values; write 0 for background and 255 for the finding"
        raise Fault(path, image_id, finding, reason)
    return values != 0
