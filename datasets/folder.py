"""Data of one's own: a folder of images, a table with named columns, and masks if there are any.

Without a column `split`, the patient decides, by u, the first 8 bytes of the SHA-256 of its name as a
fraction. Without masks, u < 0.8 is for training, u < 0.9 for validation, and the rest for the test. With
masks, patients who have one are for validation (u < 0.5) or the test, so that no mask is wasted on
training images; of the others, u < 0.9 are for training and the rest for validation.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tqdm import tqdm

from chexseg_jax.pathologies import OBSERVATIONS, canonical
from datasets.chexlocalize.annotations import Annotation, read_annotations
from datasets.chexlocalize.builder import AnnotatedImage, Masks, annotate
from datasets.chexlocalize.png_masks import read_png_masks
from datasets.chexpert.csv_table import SPLIT_NAMES, SPLITS, Row
from datasets.chexpert.images import ListedImage, locate, separate_patients
from datasets.csv_cells import Cells, parse_rows
from datasets.errors import DataError, Fault, Faults

COLUMNS: Final = {
    "path": "Path",
    "patient": "Patient",
    "view": "View",
    "frontal/lateral": "View",
    "split": "Split",
    "sex": "Sex",
    "age": "Age",
    "ap/pa": "AP/PA",
}
"""The columns besides the observations, in small letters; only `path` is required."""

_OBSERVATIONS: Final = {name.lower(): name for name in OBSERVATIONS} | {
    "lung opacity": canonical("Lung Opacity")
}
_VIEWS: Final = {
    "": "frontal",
    "frontal": "frontal",
    "ap": "frontal",
    "pa": "frontal",
    "lateral": "lateral",
    "ll": "lateral",
    "rl": "lateral",
}
_SUFFIX: Final = re.compile(r"(?i)\.(jpe?g|png|dcm|dicom)$")


@dataclass(frozen=True, slots=True)
class NamedRow(Row):
    """A row whose `view_file` is the image's path, and whose view has a column."""

    stated_view: str = "frontal"

    @property
    def image_id(self) -> str:
        """The path without suffix, joined by underscores; that of a lateral view says so at its end."""
        image_id = image_id_of(self.view_file)
        known = self.view == "frontal" or image_id.endswith("_lateral")
        return image_id if known else f"{image_id}_lateral"

    @property
    def view(self) -> str:
        """`frontal` or `lateral`."""
        return self.stated_view


def image_id_of(path: str) -> str:
    """Return the id of an image: its path without the suffix of an image, joined by underscores."""
    return _SUFFIX.sub("", path).replace("/", "_")


def split_of(patient: str, masked: bool, any_masks: bool) -> str:
    """Return the split of a patient in a table that states none.

    Args:
        patient: its name.
        masked: the patient has an image with a mask.
        any_masks: any patient has.
    """
    u = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2**64
    if masked:
        return "valid" if u < 0.5 else "test"
    if any_masks:
        return "train" if u < 0.9 else "valid"
    return "train" if u < 0.8 else "valid" if u < 0.9 else "test"


def find_folder(
    images: Path,
    table: Path,
    masks: Path | None,
    faults: Faults,
    *,
    resize_masks: bool = False,
) -> tuple[dict[str, list[ListedImage]], dict[str, list[AnnotatedImage]]]:
    """Find the images that a table lists, by split, and those of the segmenter's splits with masks.

    Args:
        images: the folder that the table's paths are relative to.
        table: a CSV file.
        masks: JSON in CheXlocalize's form, or a folder of PNGs; see `read_png_masks`.
        faults: what to do with rows, images and masks that are not valid.
        resize_masks: resize masks to images of another size.

    Raises:
        DataError: the table or the masks cannot be read; a Fault, for one row or file.
    """
    stated = _read_table(table, faults)
    ids = _image_names(stated)
    annotations: dict[str, Annotation] = {}
    if masks and masks.is_dir():
        annotations |= read_png_masks(masks, ids, faults)
    elif masks:
        for name, annotation in read_annotations(masks).items():
            if image_id := ids.get(image_id_of(name)):
                annotations[image_id] = annotation
            else:
                reason = f"no image of that name in {table}; add its row, or delete the entry"
                faults.add(Fault(masks, f"{name!r:.80}", "", reason))
    masked = {row.patient for row, _ in stated if row.image_id in annotations}
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row, split in stated:
        rows[split or split_of(row.patient, row.patient in masked, bool(masked))].append(row)
    kept = separate_patients(dict.fromkeys(rows, table), rows, faults)
    labelled = locate_named(kept, images, table, images, faults)
    if masks is None:
        return labelled, {}
    by_split = {
        split: Masks(
            masks,
            annotations={
                image.row.image_id: annotations[image.row.image_id]
                for image in listed
                if image.row.image_id in annotations
            },
        )
        for split, listed in labelled.items()
    }
    annotated = annotate(labelled, by_split, faults, resize_masks=resize_masks)
    if not annotated:
        faults.stop(DataError(f"{masks}: no mask of an image in {table}; correct --masks"))
    return labelled, annotated


def locate_named(
    rows: Mapping[str, Sequence[Row]], folder: Path, table: Path, root: Path, faults: Faults
) -> dict[str, list[ListedImage]]:
    """Find the images of each split's rows, whose paths are relative to a folder; see `locate`."""
    return {
        split: locate(
            ((row, iter([f"{folder}/{row.view_file}"])) for row in tqdm(some, delay=1)),
            table,
            root,
            faults,
        )
        for split, some in rows.items()
        if some
    }


def _read_table(table: Path, faults: Faults) -> list[tuple[NamedRow, str]]:
    """Read the rows of a table, each with the split that it states, or ""."""
    lines: dict[str, int] = {}
    alone = False

    def parse(cells: Cells) -> tuple[NamedRow, str]:
        nonlocal alone
        alone = "Patient" not in cells
        row, split = _parse(cells)
        cells.list_once(row.image_id, lines)
        return row, split

    rows = list(parse_rows(table, faults, lambda header: _columns(table, header), parse))
    if not rows and not faults.found:
        raise DataError(f"{table}: no rows below the header; write a row for each image")
    if alone:
        tqdm.write(f"{table}: no column patient, so that every image counts as another patient's")
    return rows


def _columns(table: Path, header: list[str]) -> list[str]:
    """Validate a header and return its columns' canonical names."""
    known = COLUMNS | _OBSERVATIONS
    names = [re.sub(r"[ _]+", " ", name.strip().lower()) for name in header]
    if names and names[0] in ("", "unnamed: 0"):  # the index of a table that pandas wrote
        names[0] = ""
    for place, (name, written) in enumerate(zip(names, header, strict=True)):
        if name not in known and (place or name):
            reason = (
                "not a column that is read; delete it, or name it "
                f"{', '.join(COLUMNS)} or one of {', '.join(OBSERVATIONS)}"
            )
            raise Fault(table, 1, f"{written!r:.80}", reason)
    columns = [known.get(name, "") for name in names]
    for name in columns:
        if name and columns.count(name) > 1:
            raise Fault(table, 1, repr(name), "there are two such columns; delete one")
    if "Path" not in columns:
        raise Fault(
            table, 1, "", "column 'path' is missing; write each image's path below --images"
        )
    if not set(columns) & set(OBSERVATIONS):
        reason = f"no column of an observation; name one of {', '.join(OBSERVATIONS)}"
        raise Fault(table, 1, "", reason)
    return columns


def _parse(cells: Cells) -> tuple[NamedRow, str]:
    """Parse and validate one row and the split that it states."""
    path = cells.path
    if path.startswith("/") or re.search(r"[\\\0]", path) or ".." in path.split("/"):
        raise cells.refuse("Path", "leaves the root; write it relative to --images, with /, no ..")
    if not path or path.endswith("/"):
        raise cells.refuse("Path", "names no image; write its path below --images")
    view, split = cells.get("View").lower(), cells.get("Split").lower()
    if view not in _VIEWS:
        raise cells.refuse("View", "is not known; write frontal or lateral, or nothing for frontal")
    if split and split not in SPLIT_NAMES:
        raise cells.refuse("Split", "is not known; write train, valid or test, or nothing")
    patient = cells.get("Patient") or image_id_of(path)
    row = NamedRow(
        cells.line,
        patient,
        "",
        path,
        cells.sex(),
        cells.age(),
        cells.projection(),
        cells.labels(),
        _VIEWS[view],
    )
    return row, SPLIT_NAMES.get(split, "")


def _image_names(rows: list[tuple[NamedRow, str]]) -> Mapping[str, str]:
    """Return an image's id by itself, its path, and its file's name where that is unique."""
    stems: dict[str, list[str]] = {}
    for row, _ in rows:
        stems.setdefault(image_id_of(row.view_file.rpartition("/")[2]), []).append(row.image_id)
    unique = {stem: ids[0] for stem, ids in stems.items() if len(ids) == 1}
    paths = {image_id_of(row.view_file): row.image_id for row, _ in rows}
    return unique | paths | {image_id: image_id for image_id in paths.values()}
