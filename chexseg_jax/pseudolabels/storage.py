"""Storage of pseudo-masks: 8-bit probabilities of the findings drawn, without the letterbox's padding.

A record is an image's id, its native size, which pathologies the loss ignores, and a plane for each
pathology drawn, on the letterbox's grid: 255 is certain, and a hard mask has 0 and 255 alone. Records
are compressed: of a hard mask, and of all that is zero in a soft one, little is left.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, SupportsIndex

import numpy as np
from jaxtyping import Bool, Int, UInt8

from chexseg_jax.images import content_slices
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.runtime.atomic_write import CorruptFile
from chexseg_jax.runtime.stage_folder import RecordReader, StageFolder, write_records

CERTAIN: Final = 255
HALF: Final = 128
"""The least value of a pixel that a hard mask has."""


@dataclass
class PseudoMasks:
    """One image's pseudo-masks."""

    image_id: str
    native: tuple[int, int]
    ignored: Bool[np.ndarray, "k"]
    planes: dict[str, UInt8[np.ndarray, "h w"]] = field(default_factory=dict)
    """By pathology; one that is not there is empty."""

    @classmethod
    def blank(
        cls, image_id: str, native: Int[np.ndarray, "2"], ignored: Bool[np.ndarray, "k"]
    ) -> "PseudoMasks":
        """Return an image's masks, all empty."""
        return cls(image_id, (int(native[0]), int(native[1])), ignored)

    def draw(self, masks: UInt8[np.ndarray, "s s k"], is_present: Bool[np.ndarray, "k"]) -> None:
        """Add the masks of the pathologies present, without the letterbox's padding.

        The enlarged cardiomediastinum contains the heart, as in the experts' masks.
        """
        content = masks[content_slices(*self.native, masks.shape[0])] * is_present
        heart = content[..., PATHOLOGIES.index("Cardiomegaly")]
        mediastinum = content[..., PATHOLOGIES.index("Enlarged Cardiomediastinum")]
        np.maximum(mediastinum, heart, out=mediastinum)
        for k, name in enumerate(PATHOLOGIES):
            if content[..., k].any():
                self.planes[name] = np.ascontiguousarray(content[..., k])

    def letterboxed(self, size: int) -> tuple[UInt8[np.ndarray, "s s k"], Bool[np.ndarray, "k"]]:
        """Return the masks in their letterbox, and which pathologies are valid, not ignored."""
        masks = np.zeros((size, size, len(PATHOLOGIES)), np.uint8)
        inside = content_slices(*self.native, size)
        for name, plane in self.planes.items():
            masks[(*inside, PATHOLOGIES.index(name))] = plane
        return masks, ~self.ignored

    def hard(self, size: int) -> tuple[Bool[np.ndarray, "s s k"], Bool[np.ndarray, "k"]]:
        """Return where the masks are more likely than not, as `letterboxed`."""
        masks, valid = self.letterboxed(size)
        return masks >= HALF, valid


def write_pseudo_masks(path: Path, images: Iterable[PseudoMasks]) -> None:
    """Write a shard atomically."""
    write_records(path, map(_record, images))


def _record(image: PseudoMasks) -> dict[str, np.ndarray]:
    drawn = [PATHOLOGIES.index(name) for name in image.planes]
    return {
        "image_id": np.array(image.image_id),
        "native": np.array(image.native, np.int32),
        "ignored": image.ignored,
        "drawn": np.array(drawn, np.uint8),
        "planes": np.array([*image.planes.values()], np.uint8),
    }


class PseudoMaskSource:
    """The pseudo-masks of a finished folder by index; nothing is held in memory."""

    def __init__(self, folder: StageFolder) -> None:
        """Open the shards.

        Raises:
            CorruptFile: a shard is missing or truncated.
        """
        self.fingerprint = folder.fingerprint
        self._records = RecordReader(folder, "masks")
        self._folder = folder.path

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex, /) -> PseudoMasks:
        """Read one image's masks.

        Raises:
            CorruptFile: its record cannot be read.
        """
        record = self._records[index]
        try:
            planes = zip(record["drawn"], record["planes"], strict=True)
            height, width = record["native"].tolist()
            return PseudoMasks(
                str(record["image_id"]),
                (height, width),
                record["ignored"],
                {PATHOLOGIES[int(k)]: plane for k, plane in planes},
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._corrupt(index, "is not a record of masks") from error

    def letterboxed(
        self, index: SupportsIndex, image_id: str, size: int
    ) -> tuple[UInt8[np.ndarray, "s s k"], Bool[np.ndarray, "k"]]:
        """Read one image's masks in the letterbox, and which pathologies are valid.

        Raises:
            CorruptFile: its record holds no valid masks, or those of another image.
        """
        masks = self[index]
        if masks.image_id != image_id:
            raise self._corrupt(index, f"is of {masks.image_id}, its image is {image_id}")
        try:
            return masks.letterboxed(size)
        except ValueError as error:
            raise self._corrupt(index, "holds masks of another size") from error

    def _corrupt(self, index: SupportsIndex, what: str) -> CorruptFile:
        path = self._folder / "masks-*.arrayrecord"
        return CorruptFile.at(path, f"record {int(index) + 1} {what}")
