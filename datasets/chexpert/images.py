"""Find the images that a table lists, and validate their files."""

import io
import os
import stat
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image
from PIL.Image import DecompressionBombError, DecompressionBombWarning
from tqdm import tqdm

from datasets.chexpert.csv_table import Row, read_rows
from datasets.chexpert.layout import Table
from datasets.errors import DataError

QUALITY: Final = 95
"""JPEG quality of images that are not grey and must be re-encoded."""


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image on disk, its row and table, and the root folder that must contain it."""

    row: Row
    table: str
    path: str
    root: str
    size: int

    def refuse(self, what: str) -> DataError:
        """Build an error that names this image and its row."""
        return DataError(f"{self.path} ({self.table}, row {self.row.line}, column Path): {what}")


@dataclass(frozen=True)
class GrayJpeg:
    """A grey JPEG and its size in pixels."""

    data: bytes
    height: int
    width: int


def find_images(
    tables: Mapping[str, Table], root: Path, splits: Collection[str], *, progress: bool
) -> dict[str, list[ListedImage]]:
    """Read all tables, check that no patient is in two, and find the images of `splits`."""
    rows = {split: read_rows(table.csv, split) for split, table in tables.items()}
    _check_patients(tables, rows)
    return {
        split: find_listed_images(tables[split], rows[split], root, progress=progress)
        for split in splits
    }


def find_listed_images(
    table: Table, rows: Sequence[Row], root: Path, *, progress: bool = True
) -> list[ListedImage]:
    """Find the images of a table's rows, in order.

    Raises:
        DataError: an image is missing or is not a regular file.
    """
    real_root, csv = os.path.realpath(root), os.fspath(table.csv)
    patient_parents = {
        entry.name: folder
        for folder in reversed(table.folders)
        for entry in os.scandir(folder)
        if entry.name.startswith("patient")
    }
    images = []
    bar = tqdm(rows, f"{table.split}: finding", unit="image", delay=1, disable=not progress)
    for row in bar:
        parent = patient_parents.get(row.patient, table.folders[0])
        path = parent / row.patient / row.study / row.view_file
        try:
            status = path.stat()
        except OSError as error:
            raise ListedImage(row, csv, os.fspath(path), real_root, 0).refuse(
                f"the image is missing ({error.strerror}); unpack it again, or delete the row"
            ) from None
        image = ListedImage(row, csv, os.fspath(path), real_root, status.st_size)
        if not stat.S_ISREG(status.st_mode):
            raise image.refuse("is not a file; unpack the image again, or delete the row")
        images.append(image)
    return images


def _check_patients(tables: Mapping[str, Table], rows: Mapping[str, Sequence[Row]]) -> None:
    """Raise DataError if a patient is in two splits, which would leak training data into tests."""
    seen: dict[str, tuple[Table, Row]] = {}
    for split, table in tables.items():
        for row in rows[split]:
            other, first = seen.setdefault(row.patient, (table, row))
            if other != table:
                raise DataError(
                    f"{table.csv}, row {row.line}, column Path: {row.patient} is in {table.split} "
                    f"and in {other.split} ({other.csv}, row {first.line}); delete the patient's "
                    "rows from one of the two"
                )


def read_gray_jpeg(listed: ListedImage) -> GrayJpeg:
    """Read an image as a grey JPEG; a grey file's bytes are returned unchanged.

    Raises:
        DataError: the image lies outside the root, is not a JPEG, or is truncated.
    """
    real = os.path.realpath(listed.path)
    if os.path.commonpath([real, listed.root]) != listed.root:
        raise listed.refuse(
            f"the image links to {real}, which leaves the root {listed.root}; put the file itself "
            "there, or give --raw a folder that holds both"
        )
    try:
        data = Path(real).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("error", DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                image.load()
                if image.mode != "L":
                    encoded = io.BytesIO()
                    image.convert("L").save(encoded, "JPEG", quality=QUALITY)
                    data = encoded.getvalue()
                return GrayJpeg(data, image.height, image.width)
    except (OSError, SyntaxError, DecompressionBombError, DecompressionBombWarning) as error:
        raise listed.refuse(
            f"the image is truncated or no JPEG ({error}); fetch it again, or delete the row"
        ) from None
