"""Read and validate CheXpert's CSV files."""

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chexseg_jax.pathologies import BLANK, NEGATIVE, OBSERVATIONS, POSITIVE, UNCERTAIN, canonical
from datasets.errors import DataError

DEMOGRAPHICS: Final = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
"""Columns that CheXlocalize's tables lack."""

VIEWS: Final = ("frontal", "lateral")
SEXES: Final = ("Unknown", "Female", "Male")
PROJECTIONS: Final = ("unknown", "AP", "PA", "LL", "RL")
UNKNOWN_AGE: Final = -1

SPLIT_FOLDERS: Final = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}
"""The split of each folder name; CheXlocalize names folders `val` and paths `valid`."""

_LABELS: Final = {
    "": BLANK,
    "1": POSITIVE,
    "1.0": POSITIVE,
    "0": NEGATIVE,
    "0.0": NEGATIVE,
    "-1": UNCERTAIN,
    "-1.0": UNCERTAIN,
}
_PARTS: Final = (
    re.compile(r"patient[0-9]+"),
    re.compile(r"study[0-9]+"),
    re.compile(r"view[0-9]+_(frontal|lateral)\.jpe?g"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One image's row in a table."""

    line: int
    patient: str
    study: str
    view_file: str
    sex: str
    age: int
    projection: str
    labels: tuple[int, ...]

    @property
    def image_id(self) -> str:
        """The path below the split's folder, without suffix, joined by underscores."""
        return "_".join((self.patient, self.study, self.view_file.rpartition(".")[0]))

    @property
    def view(self) -> str:
        """`frontal` or `lateral`, from the file name."""
        return self.view_file.rpartition(".")[0].rpartition("_")[2]


def read_rows(table: Path, split: str) -> list[Row]:
    """Read the rows of a CSV file in order.

    Raises:
        DataError: an unknown or missing column, an invalid label, a path that does not name an image of
            this split, or an image listed twice.
    """
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for line, cells in _read_cells(table):
        row = _parse(table, line, cells, split)
        if row.image_id in lines:
            raise DataError(
                f"{table}, row {line}, column Path: {row.image_id} is listed twice, first in row "
                f"{lines[row.image_id]}; delete one of the two rows"
            )
        lines[row.image_id] = line
        rows.append(row)
    if not rows:
        raise DataError(f"{table}: no rows below the header; restore the file from the download")
    return rows


def _read_cells(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row's number (the header is 1) and its cells by canonical column."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            columns = _columns(table, next(reader, []))
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(columns):
                    raise DataError(
                        f"{table}, row {reader.line_num}: {len(cells)} cells under {len(columns)} "
                        "columns; restore the row from the download"
                    )
                yield reader.line_num, dict(zip(columns, cells, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{table}: not a CSV file ({error}); restore it from the download"
        ) from None
    except OSError as error:
        raise DataError(f"{table}: cannot be read ({error.strerror}); check the file") from None


def _columns(table: Path, header: list[str]) -> list[str]:
    """Validate a header and return its columns' canonical names."""
    names = [canonical(name.strip()) for name in header]
    for name, written in zip(names, header, strict=True):
        if name not in ("Path", *DEMOGRAPHICS, *OBSERVATIONS):
            raise DataError(
                f"{table}, row 1, column {written!r:.80}: not a column of CheXpert's; "
                "delete the column or correct its name"
            )
        if names.count(name) > 1:
            raise DataError(
                f"{table}, row 1, column {written!r:.80}: there are two columns for {name}; "
                "delete one"
            )
    for name in ("Path", *OBSERVATIONS):
        if name not in names:
            raise DataError(
                f"{table}, row 1: column {name!r} is missing; restore the file from the download"
            )
    return names


def _parse(table: Path, line: int, cells: dict[str, str], split: str) -> Row:
    """Parse and validate one row."""

    def refuse(column: str, remedy: str) -> DataError:
        value = cells[column]
        return DataError(f"{table}, row {line}, column {column}: {value!r:.120} {remedy}")

    patient, study, view_file = _parse_path(cells["Path"], split, refuse)
    labels = []
    for name in OBSERVATIONS:
        if cells[name].strip() not in _LABELS:
            raise refuse(name, "is not a label; write 1, 0, -1 for uncertain, or nothing")
        labels.append(_LABELS[cells[name].strip()])
    sex = cells.get("Sex", "").strip() or "Unknown"
    if sex not in SEXES:
        raise refuse("Sex", f"is not known; write one of {', '.join(SEXES)}")
    age = cells.get("Age", "").strip()
    if not re.fullmatch(r"([0-9]{1,3}(\.0)?)?", age):
        raise refuse("Age", "is not an age in years; write a whole number or nothing")
    projection = cells.get("AP/PA", "").strip() or "unknown"
    if projection not in PROJECTIONS:
        raise refuse("AP/PA", f"is not known; write one of {', '.join(PROJECTIONS[1:])} or nothing")
    years = int(float(age)) if age else UNKNOWN_AGE
    row = Row(line, patient, study, view_file, sex, years, projection, tuple(labels))
    stated = cells.get("Frontal/Lateral", "").strip().lower()
    if stated and stated != row.view:
        raise refuse("Frontal/Lateral", f"contradicts the file name {view_file}; correct one")
    return row


def _parse_path(
    path: str, split: str, refuse: Callable[[str, str], DataError]
) -> tuple[str, str, str]:
    """Split a path, under any root, into patient, study and view file."""
    if path.startswith(("/", "\\")) or "\0" in path or ".." in re.split(r"[/\\]", path):
        raise refuse("Path", "leaves the root; write it relative to the download, without ..")
    parts = path.split("/")
    matched = len(parts) >= 3 and all(
        pattern.fullmatch(part) for pattern, part in zip(_PARTS, parts[-3:], strict=True)
    )
    if not matched:
        raise refuse("Path", "is not .../patient<n>/study<n>/view<n>_frontal.jpg; correct it")
    if len(parts) > 3 and SPLIT_FOLDERS.get(parts[-4]) != split:
        raise refuse("Path", f"is not of the split {split}; move the row to its own split's table")
    return parts[-3], parts[-2], parts[-1]
