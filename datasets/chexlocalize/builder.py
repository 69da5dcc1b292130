"""CheXpert's validation and test images with CheXlocalize's masks as a TFDS data set.

`expert_train` and `expert_val` are the annotated validation images, split by `chexlocalize.splits`;
images without annotations are only in `chexpert`'s `valid`. `test` is the whole test set. `hidden`, made
from `extra/gt_segmentations_train_hidden.json` if it exists, holds true masks of training images that
measure pseudo-masks and are never trained on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
from datasets.errors import DataError, Fault, Faults
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


@dataclass(frozen=True)
class Masks:
    """The files of a split's annotations; the expert's may have been read already."""

    expert: Path
    reader: Path | None = None
    annotations: Mapping[str, Annotation] | None = None


class Chexlocalize(ShardedBuilder):
    """Chest X-rays of CheXpert with experts' masks of ten pathologies, one bit each."""

    VERSION = tfds.core.Version("1.0.0")

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


def find_annotated(
    raw: Path, faults: Faults, *, resize_masks: bool = False, progress: bool = True
) -> dict[str, list[AnnotatedImage]]:
    """Find the images of every split present in a download, with their masks.

    Raises:
        DataError: the tables or masks are not valid, or there are no masks.
    """
    root = _root(raw)
    tables = find_tables(root, masks_first=True)
    needed = [split for split in tables if split != "train" or (root / HIDDEN).is_file()]
    images = find_images(tables, root, needed, faults, progress=progress)
    masks: dict[str, Masks] = {}
    for split, short in (("valid", "val"), ("test", "test")):
        if expert := find_annotations(root, "gt", short):
            masks[split] = Masks(expert, find_annotations(root, "hb", short))
    if (root / HIDDEN).is_file():
        masks["train"] = Masks(root / HIDDEN)
    splits = annotate(images, masks, faults, resize_masks=resize_masks)
    if not splits:
        raise DataError(
            f"{raw}: no image has a mask; put CheXlocalize's gt_segmentations_val.json and "
            "gt_segmentations_test.json into the folder CheXlocalize below it"
        )
    return splits


def annotate(
    images: Mapping[str, list[ListedImage]],
    masks: Mapping[str, Masks],
    faults: Faults,
    *,
    resize_masks: bool = False,
) -> dict[str, list[AnnotatedImage]]:
    """Join images with masks, and split them into those of this data set that are not empty."""
    joined = {}
    for split, listed in images.items():
        if split in masks and listed:
            try:
                joined[split] = _join(listed, masks[split], faults, resize_masks)
            except DataError as error:
                faults.stop(error)
    splits = _split_validation(joined.pop("valid"), faults) if "valid" in joined else {}
    if "test" in joined:
        splits["test"] = joined["test"]
    if "train" in joined:
        splits["hidden"] = [item for item in joined["train"] if item.expert is not None]
    return {split: items for split, items in splits.items() if items}


def _join(
    images: list[ListedImage], masks: Masks, faults: Faults, resize_masks: bool
) -> list[AnnotatedImage]:
    """Join images with the expert's and the second reader's annotations by id."""
    experts = masks.annotations
    if experts is None:
        experts = read_annotations(masks.expert)
    readers = read_annotations(masks.reader) if masks.reader else {}
    by_id = {image.row.image_id: image for image in images}
    for path, annotations in ((masks.expert, experts), (masks.reader, readers)):
        for image_id in annotations:
            if image_id not in by_id and image_id not in faults.left_out:
                reason = (
                    f"no image of that id in {images[0].table}; "
                    "add the image and its row, or delete the entry"
                )
                faults.add(Fault(str(path), f"{image_id!r:.80}", "", reason))
    paths = str(masks.expert), str(masks.reader)
    return [
        AnnotatedImage(image, experts.get(i), readers.get(i), *paths, resize_masks)
        for i, image in by_id.items()
    ]


def _root(raw: Path) -> Path:
    """Return the root of masks and images: `raw`, or its parent if `raw` holds masks alone."""
    masks = find_annotations(raw, "gt", "val") or find_annotations(raw, "gt", "test")
    return raw.resolve().parent if masks and not holds_table(raw) else raw


def _split_validation(
    images: list[AnnotatedImage], faults: Faults
) -> dict[str, list[AnnotatedImage]]:
    """Split the annotated images into training and validation of the segmenter."""
    annotated, bits = [], {}
    for item in images:
        if item.expert is None:
            continue
        try:
            bits[item.image_id] = presence_bits(item.expert)
        except MaskError as error:
            faults.add(_refuse(item, item.expert_path, str(error)), item.image_id)
        else:
            annotated.append(item)
    chosen = choose_validation({item.image_id: item.listed.row.patient for item in annotated}, bits)
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
    reason = (
        f"masks of {bits.shape[0]} x {bits.shape[1]} pixels on an "
        f"image of {height} x {width} ({item.listed.path}); give the annotated images, "
        "which CheXlocalize has in CheXpert/val and CheXpert/test"
        + (", or fit the masks with --resize-masks" if same_aspect else "")
    )
    raise Fault(path, item.image_id, "", reason)


def _refuse(item: AnnotatedImage, path: str, what: str) -> Fault:
    """Build the fault of an annotation."""
    return Fault(path, item.image_id, "", f"{what}; restore the entry from the download")
