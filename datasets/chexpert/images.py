"""Find the images that a table lists, and validate their files."""

import io
import os
import stat
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from PIL.Image import DecompressionBombWarning
from tqdm import tqdm

from chexseg_jax.radiographs.radiograph import ORIENTATION, RadiographError
from chexseg_jax.radiographs.read import is_dicom, read_radiograph
from datasets.chexpert.csv_table import Row, read_labels, read_rows
from datasets.chexpert.layout import Table
from datasets.errors import DataError, Fault, Faults

QUALITY: Final = 95
"""JPEG quality of images that are not grey JPEGs and must be encoded."""

_JPEG: Final = (".jpg", ".jpeg")
_OTHERS: Final = (".png", ".dcm", ".dicom")
_SUFFIXES: Final = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image on disk, its row and table, and the root folder that must contain it.

    `modified` is the file's time of modification in ns, by which a resumed preparation knows it again.
    """

    row: Row
    table: str
    path: str
    root: str
    size: int
    modified: int = 0

    def refuse(self, what: str) -> Fault:
        """Build the fault of this image."""
        return Fault(self.path, self.row.line, "Path", what, self.table)


@dataclass(frozen=True)
class GrayJpeg:
    """A grey JPEG and its size in pixels."""

    data: bytes
    height: int
    width: int


def find_images(
    tables: Mapping[str, Table],
    root: Path,
    splits: Collection[str],
    faults: Faults,
    *,
    progress: bool,
) -> dict[str, list[ListedImage]]:
    """Read all tables, check that no patient is in two, and find the images of `splits`."""
    rows: dict[str, list[Row]] = {}
    for split, table in tables.items():
        try:
            labels = read_labels(table.labels) if table.labels else None
            rows[split] = read_rows(table.csv, split, faults, labels)
        except DataError as error:
            faults.stop(error)
    rows = separate_patients({split: tables[split].csv for split in rows}, rows, faults)
    return {
        split: find_listed_images(tables[split], rows[split], root, faults, progress=progress)
        for split in splits
        if split in rows
    }


def find_listed_images(
    table: Table,
    rows: Sequence[Row],
    root: Path,
    faults: Faults | None = None,
    *,
    progress: bool = True,
) -> list[ListedImage]:
    """Find the images of a table's rows, in order.

    Raises:
        Fault: an image is missing or is not a regular file.
    """
    folders = [os.fspath(folder) for folder in table.folders]
    parents = {
        entry.name: folder
        for folder in reversed(folders)
        for entry in os.scandir(folder)
        if entry.name.startswith("patient")
    }

    def places(row: Row) -> Iterator[str]:
        first = parents.get(row.patient, folders[0])
        for folder in (first, *folders):
            yield f"{folder}/{row.patient}/{row.study}/{row.view_file}"
        for suffix in _SUFFIXES:  # CheXpert Plus's table calls its PNGs .jpg
            for folder in (first, *folders):
                stem = row.view_file.rpartition(".")[0]
                yield f"{folder}/{row.patient}/{row.study}/{stem}{suffix}"

    bar = tqdm(rows, f"{table.split}: finding", unit="image", delay=1, disable=not progress)
    return locate(((row, places(row)) for row in bar), table.csv, root, faults or Faults())


def locate(
    places: Iterator[tuple[Row, Iterator[str]]], table: Path, root: Path, faults: Faults
) -> list[ListedImage]:
    """Find each row's image, which is the first of its places that exists.

    Raises:
        Fault: an image is missing or is not a regular file.
    """
    real_root, csv = os.path.realpath(root), os.fspath(table)
    images = []
    for row, candidates in places:
        first, reason = "", ""
        for path in candidates:
            try:
                status = Path(path).stat()
                break
            except OSError as error:
                first, reason = first or path, reason or str(error.strerror)
        else:
            missing = ListedImage(row, csv, first, real_root, 0)
            reason = f"the image is missing ({reason}); unpack it again, or delete the row"
            faults.add(missing.refuse(reason), row.image_id)
            continue
        image = ListedImage(row, csv, path, real_root, status.st_size, status.st_mtime_ns)
        if stat.S_ISREG(status.st_mode):
            images.append(image)
        else:
            fault = image.refuse("is not a file; unpack the image again, or delete the row")
            faults.add(fault, row.image_id)
    return images


def separate_patients(
    tables: Mapping[str, Path], rows: Mapping[str, Sequence[Row]], faults: Faults
) -> dict[str, list[Row]]:
    """Return the rows of patients who are not in another split before; note the rows of the others.

    Raises:
        Fault: a patient is in two splits, which would leak training data into tests.
    """
    faults.rows = sum(map(len, rows.values())) + len(faults.found)
    faults.check()
    seen: dict[str, tuple[str, Row]] = {}
    kept: dict[str, list[Row]] = {}
    for split, table in tables.items():
        kept[split] = []
        for row in rows[split]:
            other, first = seen.setdefault(row.patient, (split, row))
            if other == split:
                kept[split].append(row)
                continue
            reason = (
                f"{row.patient} is in {split} and in {other} ({tables[other]}, row {first.line}); "
                "delete the patient's rows from one of the two"
            )
            faults.add(Fault(table, row.line, "Path", reason), row.image_id)
    return kept


def read_gray_jpeg(listed: ListedImage) -> GrayJpeg:
    """Read an image as a grey JPEG; a grey JPEG's bytes are returned unchanged.

    DICOM files are read too, and PNG files (8 or 16 bit) whose name says so.

    Raises:
        Fault: the image lies outside the root, is of another format, truncated or not upright.
    """
    real = os.path.realpath(listed.path)
    if os.path.commonpath([real, listed.root]) != listed.root:
        raise listed.refuse(
            f"the image links to {real}, which leaves the root {listed.root}; put the file itself "
            "there, or give --raw a folder that holds both"
        )
    try:
        name = listed.path.lower()
        if not name.endswith(_JPEG) and (name.endswith(_OTHERS) or is_dicom(Path(real))):
            return _encode(read_radiograph(Path(real)).image[..., 0])
        data = Path(real).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("error", DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                turn = image.getexif().get(ORIENTATION, 1) if "exif" in image.info else 1
                if turn not in (0, 1):
                    raise listed.refuse(f"its EXIF asks for a rotation ({turn}); save it upright")
                image.load()
                if image.mode != "L":
                    return _encode(np.asarray(image.convert("L")))
                return GrayJpeg(data, image.height, image.width)
    except Fault:
        raise
    except RadiographError as error:
        raise listed.refuse(str(error).removeprefix(f"{real}: ")) from None
    except Exception as error:  # Pillow's decoder raises anything from OSError to struct.error
        what = "unknown header" if isinstance(error, UnidentifiedImageError) else f"{error!s:.200}"
        raise listed.refuse(
            f"the image is truncated or no JPEG ({what}); fetch it again, or delete the row"
        ) from None


def _encode(image: UInt8[np.ndarray, "h w"]) -> GrayJpeg:
    """Encode a grey image as JPEG."""
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=QUALITY)
    return GrayJpeg(encoded.getvalue(), *image.shape)
