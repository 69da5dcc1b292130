"""Storage of pseudo-masks: one JSON line an image, run lengths of the letterbox without its padding.

A line is {"image_id", "size": [h, w] of the masks, "native": [h, w] of the image, "ignored":
[pathologies the loss ignores], "rle": {pathology: {"size", "counts"}}}; a pathology not in it is empty.
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
    ignored: list[str]
    rles: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def blank(
        cls, image_id: str, native: Int[np.ndarray, "2"], ignored: Bool[np.ndarray, "k"]
    ) -> "PseudoMasks":
        """Return an image's masks, all empty."""
        names = [name for name, ignore in zip(PATHOLOGIES, ignored, strict=True) if ignore]
        return cls(image_id, (int(native[0]), int(native[1])), names)

    def draw(self, masks: Bool[np.ndarray, "s s k"], is_present: Bool[np.ndarray, "k"]) -> None:
        """Add the masks of the pathologies present, without the letterbox's padding.

        The enlarged cardiomediastinum contains the heart, as in the experts' masks.
        """
        content = masks[content_slices(*self.native, masks.shape[0])] & is_present
        heart = PATHOLOGIES.index("Cardiomegaly")
        content[..., PATHOLOGIES.index("Enlarged Cardiomediastinum")] |= content[..., heart]
        for k, name in enumerate(PATHOLOGIES):
            if content[..., k].any():
                self.rles[name] = encode_rle(content[..., k])

    def letterboxed(self, size: int) -> tuple[UInt8[np.ndarray, "s s k"], Bool[np.ndarray, "k"]]:
        """Return the masks in their letterbox, and which pathologies are valid, not ignored."""
        masks = np.zeros((size, size, len(PATHOLOGIES)), np.uint8)
        inside = content_slices(*self.native, size)
        for name, rle in self.rles.items():
            masks[(*inside, PATHOLOGIES.index(name))] = decode_rle(rle)
        return masks, np.array([name not in self.ignored for name in PATHOLOGIES])


def write_pseudo_masks(path: Path, images: Iterable[PseudoMasks], size: int) -> None:
    """Write a shard atomically."""
    with atomic_write(path) as aside, aside.open("w") as file:
        for image in images:
            row = {
                "image_id": image.image_id,
                "size": content_size(*image.native, size),
                "native": image.native,
                "ignored": image.ignored,
                "rle": image.rles,
            }
            file.write(json.dumps(row) + "\n")


class PseudoMaskSource:
    """The pseudo-masks of a finished folder by index; only line offsets are held in memory."""

    def __init__(self, folder: StageFolder) -> None:
        """Locate the lines.

        Raises:
            CorruptFile: a shard is missing or truncated.
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
        """Read one image's masks.

        Raises:
            CorruptFile: its line cannot be read.
        """
        shard, line = divmod(int(index), SHARD)
        try:
            with self._paths[shard].open("rb") as file:
                file.seek(self._starts[shard][line])
                row = json.loads(file.readline())
            return PseudoMasks(row["image_id"], tuple(row["native"]), row["ignored"], row["rle"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._corrupt(int(index), "cannot be read") from error

    def letterboxed(
        self, index: SupportsIndex, image_id: str, size: int
    ) -> tuple[UInt8[np.ndarray, "s s k"], Bool[np.ndarray, "k"]]:
        """Read one image's masks in the letterbox, and which pathologies are valid.

        Raises:
            CorruptFile: its line holds no valid masks, or those of another image.
        """
        masks = self[index]
        if masks.image_id != image_id:
            raise self._corrupt(int(index), f"is of {masks.image_id}, its image is {image_id}")
        try:
            return masks.letterboxed(size)
        except (ValueError, KeyError, TypeError) as error:
            raise self._corrupt(int(index), str(error)) from error

    def _corrupt(self, index: int, what: str) -> CorruptFile:
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
