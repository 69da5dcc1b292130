"""Find tables and images in each layout in which CheXpert is distributed.

There are five: CheXpert-v1.0-small, CheXpert-v1.0, the folders of the full-size download
(`CheXpert-v1.0 batch 2 (train 1)`, ...) with tables in the first or beside them, CheXlocalize's
`CheXpert/{val,test}`, and CheXpert Plus's table with PNGs and separate files of labels.
"""

import filecmp
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from datasets.chexpert.csv_table import BATCH, SPLITS, holds_split
from datasets.errors import DataError

_TABLES: Final = {
    "train": ("train.csv",),
    "valid": ("valid.csv", "val_labels.csv", "valid_labels.csv"),
    "test": ("test.csv", "test_labels.csv"),
}
_FOLDERS: Final = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
_PLUS: Final = re.compile(r"df_chexpert_plus_[0-9]+\.csv")
_PLUS_LABELS: Final = re.compile(r"[a-z]+_fixed\.json")
_SMALL: Final = "CheXpert-v1.0-small"
_FULL: Final = "CheXpert-v1.0"


@dataclass(frozen=True)
class Table:
    """One split of one copy of the data: its CSV file, and the folders that hold its patients.

    Attributes:
        labels: JSON lines that replace the CSV file's labels.
    """

    split: str
    csv: Path
    folders: tuple[Path, ...]
    labels: Path | None = None


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


def find_tables(
    raw: Path, *, labels: str | None = None, masks_first: bool = False
) -> dict[str, Table]:
    """Find the tables of the splits present, at least one.

    CheXpert's copy of a split takes precedence over CheXlocalize's unless `masks_first`: CheXlocalize's
    masks have the size of CheXlocalize's images.

    Args:
        raw: the folder of the download.
        labels: the name or path of a file with other labels: CSV, which takes the place of train.csv,
            or JSON lines, for training images and for all images of CheXpert Plus.
        masks_first: prefer CheXlocalize's images.

    Raises:
        DataError: there is no table, or CheXpert is present both small and at full size.
    """
    other = None if labels is None else _find_file(raw, labels)
    plus = [path for folder in search_folders(raw) for path in _matching(folder, _PLUS)]
    if plus and not any((folder / "train.csv").is_file() for folder in search_folders(raw)):
        return _plus_tables(raw, plus[0], other)
    copies: dict[str, list[Table]] = {split: [] for split in SPLITS}
    for folder in search_folders(raw):
        for split in SPLITS:
            table = _table_in(folder, split, raw)
            if table:
                copies[split].append(table)
    if other is not None and other.suffix == ".csv":
        folders = _image_folders(other.parent, other, "train", raw)
        copies["train"] = [Table("train", other, folders)]
    if not any(copies.values()):
        raise DataError(
            f"{raw}: neither train.csv, valid.csv, test.csv nor val_labels.csv is there or in "
            f"{_FULL}, {_SMALL} or CheXpert below it; give --raw the folder of the download, and "
            "--labels if its table has another name"
        )
    tables = {split: _choose(found, masks_first) for split, found in copies.items() if found}
    if other is not None and other.suffix != ".csv" and "train" in tables:
        tables["train"] = Table("train", tables["train"].csv, tables["train"].folders, other)
    return tables


def _find_file(raw: Path, name: str) -> Path:
    """Find a file by its path, or by its name in the folders of the download."""
    for path in (Path(name), *(folder / name for folder in search_folders(raw))):
        if path.is_file():
            return path
    raise DataError(f"{name}: no such file, nor one of that name in {raw}; correct --labels")


def _matching(folder: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    """List the files in a folder whose names match."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if pattern.fullmatch(entry.name))
    return (folder / name for name in names)


def _plus_tables(raw: Path, csv: Path, labels: Path | None) -> dict[str, Table]:
    """Return the tables of CheXpert Plus: of each split that has a folder of images."""
    if labels is None:
        found = [path for folder in search_folders(raw) for path in _matching(folder, _PLUS_LABELS)]
        if len(found) > 1:
            raise DataError(
                f"{csv}: there are several files of labels for it; choose one with --labels NAME: "
                f"{', '.join(path.name for path in found)}"
            )
        labels = found[0] if found else None
    folders: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for folder in _folders_below(raw, depth=4):
        for split in SPLITS:
            if folder.name in _FOLDERS[split]:
                folders[split].append(folder)
    if not any(folders.values()):
        raise DataError(f"{csv}: no folder train or valid is below {raw}; unpack the PNGs there")
    return {
        split: Table(split, csv, tuple(some), labels) for split, some in folders.items() if some
    }


def _folders_below(folder: Path, depth: int) -> Iterator[Path]:
    """List the folders below one that may hold PNGs; a split's folder is not searched further."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    for name in names:
        if re.match(r"(?i)patient|dicom", name):
            continue
        yield folder / name
        if depth > 1 and not any(name in known for known in _FOLDERS.values()):
            yield from _folders_below(folder / name, depth - 1)


def _table_in(folder: Path, split: str, raw: Path) -> Table | None:
    """Find a split's table in a folder, with the folders of its images."""
    for name in _TABLES[split]:
        if (folder / name).is_file():
            return Table(split, folder / name, _image_folders(folder, folder / name, split, raw))
    return None


def _image_folders(folder: Path, table: Path, split: str, raw: Path) -> tuple[Path, ...]:
    """Find the folders that hold the patients of a split: beside its table, else below `raw`."""
    beside = [folder, folder.parent] if BATCH.fullmatch(folder.name) else [folder]
    for places in (beside, search_folders(raw)):
        batches = [
            near
            for place in places
            for near in _chexpert_folders(place)
            if BATCH.fullmatch(near.name) and holds_split(near.name, split)
        ]
        candidates = [place / name for place in places for name in _FOLDERS[split]]
        candidates += [batch / split for batch in batches] + batches
        folders = tuple(path for path in dict.fromkeys(candidates) if path.is_dir())
        folders = tuple(path for path in folders if path != folder)
        if folders:
            return folders
    raise DataError(
        f"{table}: its images are not beside it; unpack the folder {_FOLDERS[split][0]!r} "
        f"into {folder}"
    )


def _choose(copies: Sequence[Table], masks_first: bool) -> Table:
    """Choose the copy of a split to read."""
    chexlocalize = [table for table in copies if table.csv.name.endswith("_labels.csv")]
    chexpert = [table for table in copies if table not in chexlocalize]
    if len(chexpert) > 1 and not (chexlocalize and masks_first):
        first, second = chexpert[:2]
        same = set(first.folders) & set(second.folders)
        if not same or not filecmp.cmp(first.csv, second.csv, shallow=False):
            raise DataError(
                f"{first.csv} and {second.csv}: the split {first.split} is there twice; "
                "give --raw one of the two folders"
            )
    return (chexlocalize + chexpert if masks_first else chexpert + chexlocalize)[0]
