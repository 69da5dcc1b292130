"""Pseudo-masks at rest: a line of JSON an image, its masks as run lengths in the letterbox's content.

Each line is {"image_id", "size": [h, w] of the masks, "native": [h, w] of the image, "unknown":
[pathologies to be ignored], "rle": {pathology: {"size", "counts"}}}; absent pathologies are empty.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Bool, Int, UInt8

from chexseg_jax.images import content_size, content_slices
from chexseg_jax.masks import decode_rle, encode_rle
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.runtime.atomic_write import CorruptFile, atomic_write
from chexseg_jax.runtime.stage_folder import SHARD, StageFolder, shard_path, shards


@dataclass
class PseudoMasks:
    """One image's pseudo-masks."""

    image_id: str
    native: tuple[int, int]
    unknown: list[str]
    rles: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def blank(
        cls, image_id: str, native: Int[np.ndarray, "2"], unknown: Bool[np.ndarray, "k"]
    ) -> "PseudoMasks":
        """Returns an image's masks with nothing drawn."""
        names = [name for name, ignored in zip(PATHOLOGIES, unknown, strict=True) if ignored]
        return cls(image_id, (int(native[0]), int(native[1])), names)

    def draw(self, masks: Bool[np.ndarray, "s s k"], found: Bool[np.ndarray, "k"]) -> None:
        """Adds the masks of the pathologies found, cut out of the letterbox.

        The mediastinum's contains the heart's, as the experts' does.
        """
        content = masks[content_slices(*self.native, masks.shape[0])] & found
        heart = PATHOLOGIES.index("Cardiomegaly")
        content[..., PATHOLOGIES.index("Enlarged Cardiomediastinum")] |= content[..., heart]
        for k, name in enumerate(PATHOLOGIES):
            if content[..., k].any():
                self.rles[name] = encode_rle(content[..., k])

    def letterboxed(self, size: int) -> tuple[UInt8[np.ndarray, "s s k"], Bool[np.ndarray, "k"]]:
        """Returns the masks in the letterbox they were drawn in, and which of them are known."""
        masks = np.zeros((size, size, len(PATHOLOGIES)), np.uint8)
        where = content_slices(*self.native, size)
        for name, rle in self.rles.items():
            masks[(*where, PATHOLOGIES.index(name))] = decode_rle(rle)
        return masks, np.array([name not in self.unknown for name in PATHOLOGIES])


def write_pseudo_masks(path: Path, images: Iterable[PseudoMasks], size: int) -> None:
    """Writes a shard, whole."""
    with atomic_write(path) as aside, aside.open("w") as file:
        for image in images:
            row = {
                "image_id": image.image_id,
                "size": content_size(*image.native, size),
                "native": image.native,
                "unknown": image.unknown,
                "rle": image.rles,
            }
            file.write(json.dumps(row) + "\n")


class PseudoMaskSource:
    """The pseudo-masks of a finished folder by index; only the places of lines are held in memory."""

    def __init__(self, folder: StageFolder) -> None:
        """Finds the lines.

        Raises:
            Damaged: a shard is gone or cut short.
        """
        self.fingerprint = folder.fingerprint
        self._count = int(folder.manifest["images"])
        parts = len(shards(self._count))
        self._paths = [shard_path(folder.path, "masks", i, parts, "jsonl") for i in range(parts)]
        self._starts = [
            _line_starts(path, len(part))
            for path, part in zip(self._paths, shards(self._count), strict=True)
        ]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: SupportsIndex, /) -> PseudoMasks:
        """Returns one image's masks.

        Raises:
            Damaged: its line cannot be read.
        """
        shard, line = divmod(int(index), SHARD)
        try:
            with self._paths[shard].open("rb") as file:
                file.seek(self._starts[shard][line])
                row = json.loads(file.readline())
            return PseudoMasks(row["image_id"], tuple(row["native"]), row["unknown"], row["rle"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(int(index), "cannot be read") from error

    def letterboxed(
        self, index: SupportsIndex, image_id: str, size: int
    ) -> tuple[UInt8[np.ndarray, "s s k"], Bool[np.ndarray, "k"]]:
        """Returns one image's masks in the letterbox, and which of them are known.

        Raises:
            Damaged: its line is no masks, or another image's.
        """
        masks = self[index]
        if masks.image_id != image_id:
            raise self._damaged(int(index), f"is of {masks.image_id}, its image is {image_id}")
        try:
            return masks.letterboxed(size)
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(int(index), str(error)) from error

    def _damaged(self, index: int, what: str) -> CorruptFile:
        shard, line = divmod(index, SHARD)
        return CorruptFile.at(self._paths[shard], f"line {line + 1} {what}")


def _line_starts(path: Path, lines: int) -> Int[np.ndarray, "n"]:
    if not path.exists():
        raise CorruptFile.at(path, "gone")
    content = np.frombuffer(path.read_bytes(), np.uint8)
    ends = np.flatnonzero(content == ord("\n"))
    if len(ends) != lines or ends[-1] != len(content) - 1:
        raise CorruptFile.at(path, "cut short")
    return np.concatenate([[0], ends[:-1] + 1])
