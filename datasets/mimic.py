"""MIMIC-CXR-JPG: images in files/p10/p10000032/s50414267/, with tables of labels, splits and views.

The tables are `mimic-cxr-2.0.0-{chexpert,split,metadata}.csv`, gzipped or not. Labels are a study's, and
all its images get them. An image without labels, or whose view is not stated, oblique or of another kind
than frontal and lateral, is left out and counted.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tqdm import tqdm

from chexseg_jax.pathologies import OBSERVATIONS, canonical
from chexseg_jax.radiographs.read import is_companion
from datasets.chexpert.csv_table import SPLIT_NAMES, SPLITS, Row
from datasets.chexpert.images import ListedImage, separate_patients
from datasets.csv_cells import PROJECTIONS, SEXES, UNKNOWN_AGE, Cells, Parsed, parse_rows
from datasets.errors import DataError, Fault, Faults
from datasets.folder import NamedRow, locate_named

_VIEWS: Final = {
    **dict.fromkeys(("AP", "PA", "AP AXIAL", "AP LLD", "AP RLD", "PA LLD", "PA RLD"), "frontal"),
    **dict.fromkeys(("LATERAL", "LL", "RL", "XTABLE LATERAL"), "lateral"),
}
_IDS: Final = {
    "subject_id": re.compile(r"[0-9]{8}"),
    "study_id": re.compile(r"[0-9]{8}"),
    "dicom_id": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}"),
}


def find_mimic(
    raw: Path, faults: Faults, *, labels: str | None = None
) -> dict[str, list[ListedImage]]:
    """Find the images of every split.

    Args:
        raw: the folder of `files` and the tables.
        faults: what to do with rows and images that are not valid.
        labels: the name of another table of labels, such as mimic-cxr-2.0.0-negbio.csv.gz.

    Raises:
        DataError: a table is missing or lacks a column; a Fault, for one row or image.
    """
    if not (raw / "files").is_dir():
        raise DataError(f"{raw}: no folder files is there; give --raw the folder of MIMIC-CXR-JPG")
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}  # most studies' labels are another's too

    def labels_of(cells: Cells) -> tuple[str, tuple[int, ...]]:
        read = cells.labels()
        return cells.get("study_id"), shared.setdefault(read, read)

    def view_of(cells: Cells) -> tuple[str, str]:
        return cells.get("dicom_id"), sys.intern(cells.get("ViewPosition").upper())

    labelled = _find(raw, labels or "*-chexpert.csv")
    study_labels = dict(_read(labelled, ("study_id", *OBSERVATIONS), faults, labels_of))
    metadata = _find(raw, "*-metadata.csv")
    views = dict(_read(metadata, ("dicom_id", "ViewPosition"), faults, view_of))
    table = _find(raw, "*-split.csv")
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    left_out: Counter[str] = Counter()
    parsed = _read(table, (*_IDS, "split"), faults, lambda cells: _row(cells, study_labels, views))
    for split_or_reason, row in parsed:
        if row is None:
            left_out[split_or_reason] += 1
        else:
            rows[split_or_reason].append(row)
    for reason, count in left_out.items():
        tqdm.write(f"{table}: {count} images are left out: {reason}")
    kept = separate_patients(dict.fromkeys(rows, table), rows, faults)
    if not any(kept.values()) and not faults.found:
        raise DataError(f"{table}: no rows that can be used; restore the tables from the download")
    return locate_named(kept, raw / "files", table, raw, faults)


def _find(raw: Path, pattern: str) -> Path:
    """Find a table, gzipped or not."""
    for path in sorted([*raw.glob(pattern), *raw.glob(f"{pattern}.gz")]):
        if path.is_file() and not is_companion(path.relative_to(raw)):
            return path
    raise DataError(f"{raw}: no table {pattern} or {pattern}.gz is there; fetch it again")


def _read(
    table: Path, columns: Sequence[str], faults: Faults, parse: Callable[[Cells], Parsed]
) -> Iterator[Parsed]:
    """Parse each row of a table that has these columns."""

    def parse_header(header: list[str]) -> list[str]:
        names = [canonical(name.strip()) for name in header]
        for name in columns:
            if name not in names:
                raise Fault(table, 1, "", f"column {name!r} is missing; fetch the table again")
        return [name if name in columns else "" for name in names]

    return parse_rows(table, faults, parse_header, parse)


def _row(
    cells: Cells, labels: Mapping[str, tuple[int, ...]], views: Mapping[str, str]
) -> tuple[str, NamedRow | None]:
    """Return an image's split and row, or the reason why it is left out."""
    for name, pattern in _IDS.items():
        if not pattern.fullmatch(cells.get(name)):
            raise cells.refuse(name, "is not an id of MIMIC-CXR's; restore the row")
    subject, study, dicom = map(cells.get, _IDS)
    if (split := SPLIT_NAMES.get(cells.get("split"))) is None:
        raise cells.refuse("split", "is not a split; restore the row")
    position = views.get(dicom, "")
    if position not in _VIEWS:
        return "their view is not stated, or neither frontal nor lateral", None
    if study not in labels:
        return "their study has no labels", None
    projection = position if position in PROJECTIONS else position[:2]
    return split, NamedRow(
        cells.line,
        f"p{subject}",
        f"s{study}",
        f"p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg",
        SEXES[0],
        UNKNOWN_AGE,
        projection if projection in PROJECTIONS else PROJECTIONS[0],
        labels[study],
        _VIEWS[position],
    )
