"""Random access to prepared data, one example at a time."""

import io
import json
from pathlib import Path
from typing import Any, Final, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from chexseg_jax.pathologies import OBSERVATIONS
from chexseg_jax.photometry import Photometry
from datasets.chexlocalize import Chexlocalize
from datasets.chexpert import ChexpertWeak
from datasets.csv_cells import PROJECTIONS, SEXES, VIEWS
from datasets.errors import DataError
from datasets.tfds_builder import MANIFEST, Example

BUILDERS: Final = {"chexpert": ChexpertWeak, "chexlocalize": Chexlocalize}
"""The builder of each data set by its name on the command line."""


class PreparedSource:
    """The examples of one split by index; picklable, and safe to read from threads."""

    def __init__(
        self,
        folder: Path,
        split: str,
        fingerprint: str,
        image_ids: list[str],
        photometry: Photometry = "as-is",
    ) -> None:
        """Open the records; call `open_source` rather than this."""
        self.fingerprint, self.image_ids = fingerprint, image_ids
        self._photometry: Photometry = photometry
        if photometry != "as-is":
            self.fingerprint += f"+{photometry}"
        # Pillow decodes: TFDS would use OpenCV where it is installed, and pixels would differ.
        skip = {"image": tfds.decode.SkipDecoding()}
        self._folder = folder
        try:
            self._records = tfds.builder_from_directory(folder).as_data_source(split, decoders=skip)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            raise self._corrupt from error

    @property
    def _corrupt(self) -> DataError:
        return DataError(
            f"{self._folder}: its records are missing or truncated; remove it and prepare it again"
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: SupportsIndex, /) -> Example:
        """Read and decode one example."""
        i = index.__index__()
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        try:
            record = self._records[i]
            with Image.open(io.BytesIO(record["image"]), formats=["JPEG"]) as jpeg:
                image = np.array(jpeg)[..., None]
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise self._corrupt from error
        example: dict[str, Any] = {
            "image_id": record["image_id"].decode(),
            "image": image,
            "photometry": self._photometry,
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
    """Return the folder of a data set, prepared or not."""
    if name not in BUILDERS:
        raise DataError(f"{name!r:.80}: unknown data set; choose one of {', '.join(BUILDERS)}")
    builder = BUILDERS[name]
    return data_dir / builder.name / str(builder.VERSION)


def available(data_dir: Path) -> dict[str, list[str]]:
    """List the prepared data sets and their splits."""
    return {
        name: list(json.loads((folder_of(data_dir, name) / MANIFEST).read_text()))
        for name in BUILDERS
        if (folder_of(data_dir, name) / MANIFEST).is_file()
    }


def open_source(
    data_dir: Path, name: str, split: str, photometry: Photometry = "as-is"
) -> PreparedSource:
    """Open one split of a data set, `chexpert` or `chexlocalize`.

    Images are returned as stored; a `photometry` is named in every example and in the fingerprint.

    Raises:
        DataError: the data set has not been prepared, or has no such split.
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
    return PreparedSource(
        folder, split, manifest[split]["fingerprint"], manifest[split]["image_ids"], photometry
    )
