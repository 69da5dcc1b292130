"""CheXpert's validation and test images with CheXlocalize's masks as a TFDS data set.

`expert_train` and `expert_val` are the annotated validation images, split by `chexlocalize.splits`;
images without annotations are only in `chexpert`'s `valid`. `test` is the whole test set. `hidden`, made
from `extra/gt_segmentations_train_hidden.json` if it exists, holds true masks of training images that
measure pseudo-masks and are never trained on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt16
from tqdm import tqdm

from chexseg_jax.images import resize_mask
from chexseg_jax.masks import MaskError, unpack_plane
from chexseg_jax.pathologies import PATHOLOGIES
from datasets.chexlocalize.annotations import (
    Annotation,
    find_annotations,
    presence_bits,
    rasterise,
    read_annotations,
)
from datasets.chexlocalize.splits import choose_validation, validation_target
from datasets.chexpert.builder import image_example, image_features
from datasets.chexpert.images import GrayJpeg, ListedImage, find_images, read_gray_jpeg
from datasets.chexpert.layout import find_tables, holds_table
from datasets.errors import DataError
from datasets.tfds_builder import Example, ShardedBuilder

HIDDEN = Path("extra") / "gt_segmentations_train_hidden.json"


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """An image with its expert's and second reader's annotation, and their files."""

    listed: ListedImage
    expert: Annotation | None
    reader: Annotation | None
    expert_path: str
    reader_path: str
    resize_masks: bool

    @property
    def image_id(self) -> str:
        """The image's id in both data sets."""
        return self.listed.row.image_id

    @property
    def size(self) -> int:
        """The size of the image file in bytes."""
        return self.listed.size


class Chexlocalize(ShardedBuilder):
    """Chest X-rays of CheXpert with experts' masks of ten pathologies, one bit each."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Request CheXlocalize from Stanford AIMI, unpack it, and give its folder as manual_dir.
    """

    def __init__(self, *, resize_masks: bool = False, **options: Any) -> None:
        """Take ShardedBuilder's options too; `resize_masks` resizes masks to their images."""
        self.resize_masks = resize_masks
        super().__init__(**options)

    def find_items(self, raw: Path) -> Mapping[str, Sequence[AnnotatedImage]]:
        """Find the images of every split present."""
        root = _root(raw)
        tables = find_tables(root, masks_first=True)
        needed = [split for split in tables if split != "train" or (root / HIDDEN).is_file()]
        images = find_images(tables, root, needed, progress=self.progress)
        splits: dict[str, list[AnnotatedImage]] = {}
        if "valid" in images:
            splits = _split_validation(self._annotate(images["valid"], root, "val"))
        if "test" in images:
            splits["test"] = self._annotate(images["test"], root, "test")
        if "train" in images:
            hidden = self._join(images["train"], root / HIDDEN, None)
            splits["hidden"] = [item for item in hidden if item.expert is not None]
        splits = {split: items for split, items in splits.items() if items}
        if not splits:
            raise DataError(
                f"{raw}: no image has a mask; put CheXlocalize's gt_segmentations_val.json and "
                "gt_segmentations_test.json into the folder CheXlocalize below it"
            )
        return splits

    def _annotate(self, images: list[ListedImage], raw: Path, split: str) -> list[AnnotatedImage]:
        """Find a split's annotations and join them with its images; empty without the expert's."""
        expert = find_annotations(raw, "gt", split)
        return self._join(images, expert, find_annotations(raw, "hb", split)) if expert else []

    def _join(
        self, images: list[ListedImage], expert: Path, reader: Path | None
    ) -> list[AnnotatedImage]:
        """Join images with the expert's and the second reader's annotations by id."""
        experts = read_annotations(expert)
        readers = read_annotations(reader) if reader else {}
        by_id = {image.row.image_id: image for image in images}
        for path, annotations in ((expert, experts), (reader, readers)):
            for image_id in annotations:
                if image_id not in by_id:
                    raise DataError(
                        f"{path}, {image_id!r:.80}: no image of that id in {images[0].table}; "
                        "add the image and its row, or delete the entry"
                    )
        paths = str(expert), str(reader)
        return [
            AnnotatedImage(image, experts.get(i), readers.get(i), *paths, self.resize_masks)
            for i, image in by_id.items()
        ]

    @staticmethod
    def make_features() -> tfds.features.FeaturesDict:
        """Describe an image and its masks."""
        bitmask = {"shape": (None, None), "dtype": np.uint16, "encoding": "zlib"}
        return tfds.features.FeaturesDict(
            {
                **image_features(),
                "masks": tfds.features.Tensor(**bitmask),
                "reader_masks": tfds.features.Tensor(**bitmask),
                "annotated": tfds.features.Scalar(np.bool_),
                "benchmarked": tfds.features.Scalar(np.bool_),
            }
        )

    @staticmethod
    def make_example(item: AnnotatedImage) -> Example:
        """Read one image and rasterise its masks."""
        jpeg = read_gray_jpeg(item.listed)
        return {
            **image_example(item.listed, jpeg),
            "masks": _masks(item, item.expert, item.expert_path, jpeg),
            "reader_masks": _masks(item, item.reader, item.reader_path, jpeg),
            "annotated": item.expert is not None,
            "benchmarked": item.reader is not None,
        }


def _root(raw: Path) -> Path:
    """Return the root of masks and images: `raw`, or its parent if `raw` holds masks alone."""
    masks = find_annotations(raw, "gt", "val") or find_annotations(raw, "gt", "test")
    return raw.resolve().parent if masks and not holds_table(raw) else raw


def _split_validation(images: list[AnnotatedImage]) -> dict[str, list[AnnotatedImage]]:
    """Split the annotated images into training and validation of the segmenter."""
    annotated = [item for item in images if item.expert is not None]
    chosen = choose_validation(
        {item.image_id: item.listed.row.patient for item in annotated},
        {item.image_id: _bits_of(item) for item in annotated},
    )
    target = validation_target(len(annotated))
    if len(chosen) < target:
        tqdm.write(
            f"expert_val: {len(chosen)} images rather than {target}: the other patients "
            "have rare pathologies or too many images"
        )
    return {
        "expert_train": [item for item in annotated if item.image_id not in chosen],
        "expert_val": [item for item in annotated if item.image_id in chosen],
    }


def _bits_of(item: AnnotatedImage) -> int:
    """Return `presence_bits` of the expert's annotation."""
    try:
        return presence_bits(item.expert or {})
    except MaskError as error:
        raise _refuse(item, item.expert_path, str(error)) from None


def _masks(
    item: AnnotatedImage, annotation: Annotation | None, path: str, jpeg: GrayJpeg
) -> UInt16[np.ndarray, "h w"]:
    """Rasterise an annotation at its image's size; zeros without one."""
    height, width = jpeg.height, jpeg.width
    if annotation is None:
        return np.zeros((height, width), np.uint16)
    try:
        bits = rasterise(annotation)
    except MaskError as error:
        raise _refuse(item, path, str(error)) from None
    if bits.shape == (height, width):
        return bits
    # Both sides of a downscaled copy are rounded, hence two pixels of tolerance.
    same_aspect = abs(bits.shape[0] * width / bits.shape[1] - height) <= 2
    if item.resize_masks and same_aspect:
        resized = np.zeros((height, width), np.uint16)
        for k in range(len(PATHOLOGIES)):  # one plane at a time, as native sizes are large
            mask = resize_mask(unpack_plane(bits, k), height, width)
            resized |= mask.astype(np.uint16) << np.uint16(k)
        return resized
    raise DataError(
        f"{path}, {item.image_id}: masks of {bits.shape[0]} x {bits.shape[1]} pixels on an "
        f"image of {height} x {width} ({item.listed.path}); give --raw the annotated images, "
        "which CheXlocalize has in CheXpert/val and CheXpert/test"
        + (", or fit the masks with --resize-masks" if same_aspect else "")
    )


def _refuse(item: AnnotatedImage, path: str, what: str) -> DataError:
    """Build an error that names the annotation file and the image."""
    return DataError(f"{path}, {item.image_id}: {what}; restore the entry from the download")
