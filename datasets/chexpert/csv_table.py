"""Read and validate CheXpert's CSV files, CheXpert Plus's table, and label files for either."""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chexseg_jax.pathologies import OBSERVATIONS, canonical
from datasets.csv_cells import Cells, parse_rows
from datasets.errors import DataError, Fault, Faults

DEMOGRAPHICS: Final = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
"""Columns that CheXlocalize's tables lack."""

BATCH: Final = re.compile(r"(?i)(chexpert-v1\.0 )?batch [0-9]+ \((?P<what>.*)\)")
"""A folder of the full-size download, and which splits it holds."""

SPLITS: Final = ("train", "valid", "test")

SPLIT_NAMES: Final = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validate": "valid",
    "validation": "valid",
    "test": "test",
}
"""The split of each name of a split; CheXlocalize names folders `val` and paths `valid`."""

_PLUS_COLUMNS: Final = {
    "path_to_image": "Path",
    "frontal_lateral": "Frontal/Lateral",
    "ap_pa": "AP/PA",
    "sex": "Sex",
    "age": "Age",
    "split": "split",
}
"""CheXpert Plus's columns under CheXpert's names; its others, such as reports, are not read."""

_STUDY: Final = (re.compile(r"patient[0-9]+"), re.compile(r"study[0-9]+"))
_VIEW: Final = re.compile(r"view[0-9]+_(frontal|lateral)\.(jpe?g|png)")

Labels = Mapping[str, Mapping[str, str]]
"""The observations' cells by image id."""


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


def holds_split(folder: str, split: str) -> bool:
    """Check whether a folder of this name holds a split's images, alone or with others."""
    if match := BATCH.fullmatch(folder):
        return split in match["what"].lower()
    return SPLIT_NAMES.get(folder) == split


def read_rows(
    table: Path, split: str, faults: Faults | None = None, labels: Labels | None = None
) -> list[Row]:
    """Read the rows of a split in a CSV file, in order.

    Args:
        table: a table of the split, or CheXpert Plus's of all splits.
        split: `train`, `valid` or `test`.
        faults: what to do with rows that are not valid; by default the first is raised.
        labels: labels that take the place of the table's.

    Raises:
        DataError: an unknown or missing column, or no rows.
        Fault: an invalid label, a path that does not name an image of this split, or an image listed
            twice.
    """
    faults = faults or Faults()
    lines: dict[str, int] = {}

    def parse_header(header: list[str]) -> list[str]:
        return _columns(table, header, labels is not None)

    def parse(cells: Cells) -> Row | None:
        """Return a row of the split, None for one of another."""
        if "split" in cells and not _is_of_split(cells, split):
            return None
        row = _parse(cells, split, labels)
        cells.list_once(row.image_id, lines)
        return row

    rows = [row for row in parse_rows(table, faults, parse_header, parse) if row]
    if not rows and not faults.found:
        raise DataError(f"{table}: no rows below the header; restore the file from the download")
    return rows


def read_labels(path: Path) -> dict[str, dict[str, str]]:
    """Read labels in JSON lines by image id: an object an image, as CheXpert Plus has them."""
    labels: dict[str, dict[str, str]] = {}
    shared: dict[tuple[str, ...], dict[str, str]] = {}  # most images have labels that others have
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for text in file:
                number += 1
                if not text.strip():
                    continue
                entry = {canonical(name): value for name, value in json.loads(text).items()}
                values = ((name, entry[name]) for name in OBSERVATIONS)
                cells = {name: "" if value is None else str(value) for name, value in values}
                image_id = "_".join(entry["path_to_image"].split("/")[-3:]).rpartition(".")[0]
                labels[image_id] = shared.setdefault(tuple(cells.values()), cells)
    except KeyError as error:
        raise DataError(f"{path}, row {number}: {error} is missing; restore the file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}, row {number}: not a JSON object of labels ({error!s:.80}); restore the file"
        ) from None
    return labels


def _columns(table: Path, header: list[str], labelled: bool) -> list[str]:
    """Validate a header and return its columns' canonical names, "" for those that are not read."""
    known = ("Path", *DEMOGRAPHICS, *OBSERVATIONS)
    names = [canonical(name.strip()) for name in header]
    if plus := "path_to_image" in names:
        names = [_PLUS_COLUMNS.get(name, name if name in OBSERVATIONS else "") for name in names]
    elif names and names[0] in ("", "Unnamed: 0"):  # the index of a table that pandas wrote
        names[0] = ""
    for place, (name, written) in enumerate(zip(names, header, strict=True)):
        if not plus and name not in known and (place or name):
            reason = "not a column of CheXpert's; delete the column or correct its name"
            raise Fault(table, 1, f"{written!r:.80}", reason)
    for name in known:
        if names.count(name) > 1:
            raise Fault(table, 1, repr(name), f"there are two columns for {name}; delete one")
    if labelled:
        names = ["" if name in OBSERVATIONS else name for name in names]
    for name in ("Path", *(() if labelled else OBSERVATIONS)):
        if name not in names:
            remedy = "restore the file from the download"
            if plus:
                remedy = "give the file with Plus's labels as --labels NAME"
            raise Fault(table, 1, "", f"column {name!r} is missing; {remedy}")
    return names


def _is_of_split(cells: Cells, split: str) -> bool:
    """Check whether a row of CheXpert Plus is of a split."""
    stated = SPLIT_NAMES.get(cells.get("split"))
    if stated is None:
        raise cells.refuse("split", "is not a split; write train, valid or test")
    return stated == split


def _parse(cells: Cells, split: str, labels: Labels | None) -> Row:
    """Parse and validate one row."""
    patient, study, view_file = _parse_path(cells, split)
    labelled = cells
    if labels is not None:
        image_id = "_".join((patient, study, view_file.rpartition(".")[0]))
        if image_id not in labels:
            raise cells.refuse("Path", "has no labels in the file of --labels; delete the row")
        labelled = Cells(cells.table, cells.line, labels[image_id])
    sex, age, projection = cells.sex(), cells.age(), cells.projection()
    view_file, study = sys.intern(view_file), sys.intern(study)  # many images share them
    row = Row(cells.line, patient, study, view_file, sex, age, projection, labelled.labels())
    stated = cells.get("Frontal/Lateral").lower()
    if stated and stated != row.view:
        raise cells.refuse("Frontal/Lateral", f"contradicts the file name {view_file}; correct one")
    return row


def _parse_path(cells: Cells, split: str) -> tuple[str, str, str]:
    """Split a path, under any root, into patient, study and view file."""
    path = cells.path
    if path.startswith(("/", "\\")) or "\0" in path or ".." in re.split(r"[/\\]", path):
        raise cells.refuse("Path", "leaves the root; write it relative to the download, without ..")
    parts = path.split("/")
    matched = len(parts) >= 3 and all(
        pattern.fullmatch(part) for pattern, part in zip((*_STUDY, _VIEW), parts[-3:], strict=True)
    )
    if not matched:
        raise cells.refuse("Path", "is not .../patient<n>/study<n>/view<n>_frontal.jpg; correct it")
    if len(parts) > 3 and not holds_split(parts[-4], split):
        raise cells.refuse(
            "Path", f"is not of the split {split}; move the row to its own split's table"
        )
    return parts[-3], parts[-2], parts[-1]
