"""Find tables and images in each layout in which CheXpert is distributed.

There are four: CheXpert-v1.0-small, CheXpert-v1.0, the folders of the full-size download
(`CheXpert-v1.0 batch 2 (train 1)`, ...), and CheXlocalize's `CheXpert/{val,test}`.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from datasets.errors import DataError

SPLITS: Final = ("train", "valid", "test")

_TABLES: Final = {
    "train": ("train.csv",),
    "valid": ("valid.csv", "val_labels.csv", "valid_labels.csv"),
    "test": ("test.csv", "test_labels.csv"),
}
_FOLDERS: Final = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
_BATCH: Final = re.compile(r"(?i)(chexpert-v1\.0 )?batch [0-9]+ \((?P<what>.*)\)")
_SMALL: Final = "CheXpert-v1.0-small"
_FULL: Final = "CheXpert-v1.0"


@dataclass(frozen=True)
class Table:
    """One split of one copy of the data: its CSV file, and the folders that hold its patients."""

    split: str
    csv: Path
    folders: tuple[Path, ...]


def holds_table(raw: Path) -> bool:
    """Check whether a folder, or a folder searched below it, holds a split's table."""
    names = [name for tables in _TABLES.values() for name in tables]
    return any((folder / name).is_file() for folder in search_folders(raw) for name in names)


def search_folders(raw: Path) -> list[Path]:
    """List the folders that may hold tables, images or masks: `raw` first, then those below."""
    folders = [raw]
    for level in (raw, *_chexpert_folders(raw)):
        folders += [folder for folder in _chexpert_folders(level) if folder not in folders]
    return folders


def _chexpert_folders(folder: Path) -> list[Path]:
    """List the subfolders named like a part of CheXpert or CheXlocalize."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    return [folder / name for name in names if re.match(r"(?i)chex|batch ", name)]


def find_tables(raw: Path, *, masks_first: bool = False) -> dict[str, Table]:
    """Find the tables of the splits present, at least one.

    CheXpert's copy of a split takes precedence over CheXlocalize's unless `masks_first`: CheXlocalize's
    masks have the size of CheXlocalize's images.

    Raises:
        DataError: there is no table, or CheXpert is present both small and at full size.
    """
    copies: dict[str, list[Table]] = {split: [] for split in SPLITS}
    for folder in search_folders(raw):
        for split in SPLITS:
            table = _table_in(folder, split)
            if table:
                copies[split].append(table)
    if not any(copies.values()):
        raise DataError(
            f"{raw}: neither train.csv, valid.csv, test.csv nor val_labels.csv is there or in "
            f"{_FULL}, {_SMALL} or CheXpert below it; give --raw the folder of the download"
        )
    return {split: _choose(tables, masks_first) for split, tables in copies.items() if tables}


def _table_in(folder: Path, split: str) -> Table | None:
    """Find a split's table in a folder, with the folders of its images."""
    for name in _TABLES[split]:
        if (folder / name).is_file():
            return Table(split, folder / name, _image_folders(folder, folder / name, split))
    return None


def _image_folders(folder: Path, table: Path, split: str) -> tuple[Path, ...]:
    """Find the folders that hold the patients of a split."""
    batches = [
        near
        for near in (_chexpert_folders(folder.parent) if _BATCH.fullmatch(folder.name) else [])
        if (match := _BATCH.fullmatch(near.name)) and split in match["what"].lower()
    ]
    candidates = [folder / name for name in _FOLDERS[split]]
    candidates += [batch / split for batch in batches] + batches
    folders = tuple(path for path in candidates if path.is_dir() and path != folder)
    if not folders:
        raise DataError(
            f"{table}: its images are not beside it; unpack the folder {_FOLDERS[split][0]!r} "
            f"into {folder}"
        )
    return folders


def _choose(copies: Sequence[Table], masks_first: bool) -> Table:
    """Choose the copy of a split to read."""
    chexlocalize = [table for table in copies if table.csv.name.endswith("_labels.csv")]
    chexpert = [table for table in copies if table not in chexlocalize]
    if len(chexpert) > 1 and not (chexlocalize and masks_first):
        raise DataError(
            f"{chexpert[0].csv} and {chexpert[1].csv}: the split {chexpert[0].split} is there twice; "
            "give --raw one of the two folders"
        )
    return (chexlocalize + chexpert if masks_first else chexpert + chexlocalize)[0]
