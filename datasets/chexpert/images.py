"""Every image that a table lists, found on disk; and its pixels, checked."""

import io
import os
import stat
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image
from tqdm import tqdm

from datasets.chexpert.csv_table import Row
from datasets.chexpert.layout import Table
from datasets.errors import DataError

QUALITY: Final = 95
"""JPEG quality of the images that were not grey and had to be encoded anew."""


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image on disk, its row, the table of the row, and the folder that it must not leave."""

    row: Row
    table: str
    path: str
    root: str
    size: int

    def refuse(self, what: str) -> DataError:
        """Returns an error that names this image and its row."""
        return DataError(f"{self.path} ({self.table}, row {self.row.line}, column Path): {what}")


@dataclass(frozen=True)
class GrayJpeg:
    """A grey JPEG and its size in pixels."""

    jpeg: bytes
    height: int
    width: int


def find_listed_images(
    table: Table, rows: Sequence[Row], root: Path, *, progress: bool = True
) -> list[ListedImage]:
    """Returns the images of a table's rows, all below `root`, in order.

    Raises:
        DataError: an image is missing, or is not a file.
    """
    real_root, csv = os.path.realpath(root), os.fspath(table.csv)
    homes = {
        entry.name: folder
        for folder in reversed(table.folders)
        for entry in os.scandir(folder)
        if entry.name.startswith("patient")
    }
    films = []
    bar = tqdm(rows, f"{table.split}: finding", unit="image", delay=1, disable=not progress)
    for row in bar:
        home = homes.get(row.patient, table.folders[0])
        path = home / row.patient / row.study / row.view_file
        try:
            found = path.stat()
        except OSError as error:
            raise ListedImage(row, csv, os.fspath(path), real_root, 0).refuse(
                f"the image is missing ({error.strerror}); unpack it again, or delete the row"
            ) from None
        film = ListedImage(row, csv, os.fspath(path), real_root, found.st_size)
        if not stat.S_ISREG(found.st_mode):
            raise film.refuse("is not a file; unpack the image again, or delete the row")
        films.append(film)
    return films


def check_patients(tables: Iterable[tuple[Table, Sequence[Row]]]) -> None:
    """Raises DataError if a patient is in two splits, for a test on a training patient is none."""
    seen: dict[str, tuple[Table, Row]] = {}
    for table, rows in tables:
        for row in rows:
            other, first = seen.setdefault(row.patient, (table, row))
            if other != table:
                raise DataError(
                    f"{table.csv}, row {row.line}, column Path: {row.patient} is in {table.split} "
                    f"and in {other.split} ({other.csv}, row {first.line}); delete the patient's "
                    "rows from one of the two"
                )


def read_gray_jpeg(film: ListedImage) -> GrayJpeg:
    """Returns an image as a grey JPEG: the file's own bytes if it is one.

    Raises:
        DataError: it lies outside the root, is no JPEG, or is damaged.
    """
    real = os.path.realpath(film.path)
    if os.path.commonpath([real, film.root]) != film.root:
        raise film.refuse(
            f"the image is really {real}, which leaves the root {film.root}; put the file itself "
            "there, or give --raw a folder that holds both"
        )
    try:
        jpeg = Path(real).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
                image.load()
                if image.mode != "L":
                    encoded = io.BytesIO()
                    image.convert("L").save(encoded, "JPEG", quality=QUALITY)
                    jpeg = encoded.getvalue()
                return GrayJpeg(jpeg, image.height, image.width)
    except (
        OSError,
        SyntaxError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as e:
        raise film.refuse(
            f"the image is truncated or no JPEG ({e}); fetch it again, or delete the row"
        ) from None
