"""CheXpert's validation and test images with CheXlocalize's masks as a TFDS data set.

Splits: `expert_train` and `expert_val` are the annotated validation images (see `datasets.chexlocalize.splits`);
those that nobody drew on are in no split here, being in `chexpert`'s `valid`. `test` is all of the test
set. `hidden`, only where `extra/gt_segmentations_train_hidden.json` is there, holds true masks of
training images, to measure pseudo-masks by and never to train on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt16
from tqdm import tqdm

from chexseg_jax.images import resize
from chexseg_jax.masks import MaskError, pack, unpack
from datasets.chexlocalize.annotations import (
    Annotation,
    drawn_bits,
    find_annotations,
    rasterise,
    read_annotations,
)
from datasets.chexlocalize.splits import choose_validation, wanted_for_validation
from datasets.chexpert.builder import image_example, image_features
from datasets.chexpert.csv_table import read_rows
from datasets.chexpert.images import (
    GrayJpeg,
    ListedImage,
    check_patients,
    find_listed_images,
    read_gray_jpeg,
)
from datasets.chexpert.layout import find_tables, holds_table
from datasets.errors import DataError
from datasets.tfds_builder import Example, ShardedBuilder

HIDDEN = Path("extra") / "gt_segmentations_train_hidden.json"


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """An image with its expert's and its second reader's drawing, and the files they come from."""

    film: ListedImage
    expert: Annotation | None
    reader: Annotation | None
    expert_path: str
    reader_path: str
    resize_masks: bool

    @property
    def size(self) -> int:
        """The bytes of the image's file."""
        return self.film.size


class Chexlocalize(ShardedBuilder):
    """Chest X-rays of CheXpert with experts' masks of ten pathologies, a bit each."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Request CheXlocalize from Stanford AIMI, unpack it, and give its folder as manual_dir.
    """

    def __init__(self, *, resize_masks: bool = False, **options: Any) -> None:
        """Takes ShardedBuilder's options too; `resize_masks` fits masks to images of another size."""
        self.resize_masks = resize_masks
        super().__init__(**options)

    def find_items(self, raw: Path) -> Mapping[str, Sequence[AnnotatedImage]]:
        """Returns the images of every split that is there."""
        root = _root(raw)
        tables = find_tables(root, masks_first=True)
        rows = {split: read_rows(table.csv, split) for split, table in tables.items()}
        check_patients([(tables[split], rows[split]) for split in tables])
        films = {
            split: find_listed_images(tables[split], rows[split], root, progress=self.progress)
            for split in tables
            if split != "train" or (root / HIDDEN).is_file()
        }
        splits: dict[str, list[AnnotatedImage]] = {}
        if "valid" in films and (valid := self._join(root, films["valid"], "val")):
            annotated = [item for item in valid if item.expert is not None]
            chosen = choose_validation(
                {item.film.row.image_id: item.film.row.patient for item in annotated},
                {item.film.row.image_id: _bits_of(item) for item in annotated},
            )
            wanted = wanted_for_validation(len(annotated))
            if len(chosen) < wanted:
                tqdm.write(
                    f"expert_val: {len(chosen)} images rather than {wanted}, as the other patients "
                    "have scarce pathologies or too many images"
                )
            for item in annotated:
                part = "expert_val" if item.film.row.image_id in chosen else "expert_train"
                splits.setdefault(part, []).append(item)
        if "test" in films:
            splits["test"] = self._join(root, films["test"], "test")
        if "train" in films:
            items = self._match(films["train"], root / HIDDEN, None)
            splits["hidden"] = [item for item in items if item.expert is not None]
        splits = {split: items for split, items in splits.items() if items}
        if not splits:
            raise DataError(
                f"{raw}: no image has a mask; put CheXlocalize's gt_segmentations_val.json and "
                "gt_segmentations_test.json into the folder CheXlocalize below it"
            )
        return splits

    def _join(self, raw: Path, films: list[ListedImage], split: str) -> list[AnnotatedImage]:
        """Returns images with their drawings; none if the expert's file is not there."""
        expert = find_annotations(raw, "gt", split)
        return self._match(films, expert, find_annotations(raw, "hb", split)) if expert else []

    def _match(
        self, films: list[ListedImage], expert: Path, reader: Path | None
    ) -> list[AnnotatedImage]:
        """Returns images with what the expert, and the second reader, drew on them."""
        drawings = read_annotations(expert)
        others = read_annotations(reader) if reader else {}
        known = {film.row.image_id for film in films}
        for path, named in ((expert, drawings), (reader, others)):
            for image_id in named:
                if image_id not in known:
                    raise DataError(
                        f"{path}, {image_id!r:.80}: no image of that id in {films[0].table}; "
                        "add the image and its row, or delete the entry"
                    )
        return [
            AnnotatedImage(
                film,
                drawings.get(film.row.image_id),
                others.get(film.row.image_id),
                str(expert),
                str(reader),
                self.resize_masks,
            )
            for film in films
        ]

    @staticmethod
    def make_features() -> tfds.features.FeaturesDict:
        """Returns the features of an image and its masks."""
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
        """Returns one image with its masks."""
        picture = read_gray_jpeg(item.film)
        return {
            **image_example(item.film, picture),
            "masks": _masks(item, item.expert, item.expert_path, picture),
            "reader_masks": _masks(item, item.reader, item.reader_path, picture),
            "annotated": item.expert is not None,
            "benchmarked": item.reader is not None,
        }


def _root(raw: Path) -> Path:
    """Returns the folder of masks and images: `raw`, or its parent if it holds masks alone."""
    masks = find_annotations(raw, "gt", "val") or find_annotations(raw, "gt", "test")
    return raw.resolve().parent if masks and not holds_table(raw) else raw


def _bits_of(item: AnnotatedImage) -> int:
    """Returns the pathologies that an annotated image shows."""
    try:
        return drawn_bits(item.expert or {})
    except MaskError as error:
        raise _refuse(item, item.expert_path, str(error)) from None


def _masks(
    item: AnnotatedImage, drawing: Annotation | None, path: str, picture: GrayJpeg
) -> UInt16[np.ndarray, "h w"]:
    """Returns a drawing at its image's size; empty if nobody drew."""
    height, width = picture.height, picture.width
    if drawing is None:
        return np.zeros((height, width), np.uint16)
    try:
        bits = rasterise(drawing)
    except MaskError as error:
        raise _refuse(item, path, str(error)) from None
    if bits.shape == (height, width):
        return bits
    # Either side of a smaller copy is rounded, so its shape is the same to two pixels.
    same_shape = abs(bits.shape[0] * width / bits.shape[1] - height) <= 2
    if item.resize_masks and same_shape:
        planes = unpack(bits) * np.uint8(255)
        fitted = [resize(planes[..., k], height, width) >= 128 for k in range(planes.shape[-1])]
        return pack(np.stack(fitted, -1))
    raise DataError(
        f"{path}, {item.film.row.image_id}: masks of {bits.shape[0]} x {bits.shape[1]} pixels on an "
        f"image of {height} x {width} ({item.film.path}); give --raw the images that were drawn on, "
        "which CheXlocalize has in CheXpert/val and CheXpert/test"
        + (", or fit the masks with --resize-masks" if same_shape else "")
    )


def _refuse(item: AnnotatedImage, path: str, what: str) -> DataError:
    """Returns an error that names a file of drawings and the image."""
    return DataError(
        f"{path}, {item.film.row.image_id}: {what}; restore the entry from the download"
    )
