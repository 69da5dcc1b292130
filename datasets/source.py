"""Prepared data, read back one example at a time."""

import io
import json
from pathlib import Path
from typing import Any, Final, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from chexseg_jax.pathologies import OBSERVATIONS
from datasets.chexlocalize import Chexlocalize
from datasets.chexpert import ChexpertWeak
from datasets.chexpert.csv_table import PROJECTIONS, SEXES, VIEWS
from datasets.errors import DataError
from datasets.tfds_builder import MANIFEST, Example

BUILDERS: Final = {"chexpert": ChexpertWeak, "chexlocalize": Chexlocalize}
"""The builder of each data set, by the name that people type."""


class Source:
    """The examples of one split, by index; can be pickled and read from threads."""

    def __init__(self, folder: Path, split: str, fingerprint: str, image_ids: list[str]) -> None:
        """Opens the records; `open_source` is how to get one."""
        self.fingerprint, self.image_ids = fingerprint, image_ids
        # Decoded here by Pillow: TFDS would use OpenCV where it is installed, and pixels would differ.
        skip = {"image": tfds.decode.SkipDecoding()}
        self._folder = folder
        try:
            self._records = tfds.builder_from_directory(folder).as_data_source(split, decoders=skip)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            raise self._damaged from error

    @property
    def _damaged(self) -> DataError:
        return DataError(
            f"{self._folder}: its records are gone or cut short; remove that folder and prepare it again"
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: SupportsIndex, /) -> Example:
        """Returns one example."""
        at = index.__index__()
        if not 0 <= at < len(self):
            raise IndexError(f"example {at} of {len(self)}")
        try:
            record = self._records[at]
            with Image.open(io.BytesIO(record["image"]), formats=["JPEG"]) as picture:
                image = np.array(picture)[..., None]
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise self._damaged from error
        example: dict[str, Any] = {
            "image_id": record["image_id"].decode(),
            "image": image,
            "labels": np.array([record["labels"][name] for name in OBSERVATIONS], np.int8),
            "view": VIEWS[record["view"]],
            "sex": SEXES[record["sex"]],
            "age": int(record["age"]),
            "projection": PROJECTIONS[record["projection"]],
        }
        if "masks" in record:
            example["masks"] = record["masks"]
            example["reader_masks"] = record["reader_masks"]
            example["annotated"] = bool(record["annotated"])
            example["benchmarked"] = bool(record["benchmarked"])
        return example


def folder_of(data_dir: Path, name: str) -> Path:
    """Returns where a data set lies, or would lie, once prepared."""
    if name not in BUILDERS:
        raise DataError(f"{name!r:.80}: no such data set; choose one of {', '.join(BUILDERS)}")
    builder = BUILDERS[name]
    return data_dir / builder.name / str(builder.VERSION)


def available(data_dir: Path) -> dict[str, list[str]]:
    """Returns the prepared data sets and their splits."""
    return {
        name: list(json.loads((folder_of(data_dir, name) / MANIFEST).read_text()))
        for name in BUILDERS
        if (folder_of(data_dir, name) / MANIFEST).is_file()
    }


def open_source(data_dir: Path, name: str, split: str) -> Source:
    """Returns one split of a data set, `chexpert` or `chexlocalize`.

    Raises:
        DataError: it has not been prepared, or has no such split.
    """
    folder = folder_of(data_dir, name)
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"{folder}: {name} has not been prepared; run "
            f"`python -m datasets {name} --raw DIR --data-dir {data_dir}`"
        )
    manifest = json.loads((folder / MANIFEST).read_text())
    if split not in manifest:
        raise DataError(
            f"{folder}: no split {split!r:.80}, only {', '.join(manifest)}; add its images to the "
            f"download, remove {folder}, and run "
            f"`python -m datasets {name} --raw DIR --data-dir {data_dir}`"
        )
    return Source(folder, split, manifest[split]["fingerprint"], manifest[split]["image_ids"])
