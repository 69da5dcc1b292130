"""What reads each kind of file, which refusals it may meet, and what must hold if it meets none."""

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from chexseg_jax.evaluation.chexlocalize import ChexlocalizeError, Segmentations, read_thresholds
from chexseg_jax.masks import MaskError, decode_rle
from chexseg_jax.radiographs.dicom import read_dicom
from chexseg_jax.radiographs.radiograph import Radiograph, RadiographError, read_jpeg_or_png
from chexseg_jax.weights.convert import find_state_dict, plain_names, read_checkpoint
from datasets.chexlocalize.annotations import presence_bits, rasterise, read_annotations
from datasets.chexpert.csv_table import Row, read_rows
from datasets.chexpert.images import ListedImage, read_gray_jpeg
from datasets.errors import DataError
from tests.fuzzing import corpora
from tests.fuzzing import mutations as m

Reader = Callable[[Path], None]


@dataclass(frozen=True)
class Target:
    """A kind of file: its whole specimens, what changes them, and what reads them.

    `nameless` are refusals whose callers add the file's name, which the reader itself never learns.
    """

    corpus: Callable[[], corpora.Corpus]
    mutations: tuple[m.Mutation, ...]
    readers: tuple[Reader, ...]
    refusals: tuple[type[Exception], ...]
    nameless: tuple[type[Exception], ...] = ()


def sane(condition: bool, what: str) -> None:
    """Complains of an accepted file that gave something unsound."""
    if not condition:
        raise AssertionError(f"accepted, but {what}")


def sane_radiograph(read: Callable[[Path], Radiograph], path: Path) -> None:
    found = read(path)
    image = found.image
    sane(image.dtype == np.uint8 and image.ndim == 3, f"{image.dtype} {image.shape}")
    sane(image.shape[2] == 1 and image.size > 0, f"shape {image.shape}")
    if found.spacing is not None:
        sides = (found.spacing.rows, found.spacing.columns)
        sane(all(np.isfinite(side) and side > 0 for side in sides), f"spacing {sides}")


def film(path: Path) -> None:
    row = Row(2, "patient1", "study1", path.name, "Male", 50, "AP", (0,) * 14)
    film = ListedImage(row, "train.csv", str(path), str(path.parent.resolve()), path.stat().st_size)
    found = read_gray_jpeg(film)
    sane(found.data[:2] == b"\xff\xd8" and found.height > 0 < found.width, "no JPEG")


def drawings(path: Path) -> None:
    for drawing in read_annotations(path).values():
        error: MaskError | None = None
        try:
            presence_bits(drawing)
        except MaskError as refusal:
            error = refusal
        bits = rasterise(drawing)
        sane(error is None, f"its bits are refused: {error}")
        sane(bits.dtype == np.uint16 and bits.ndim == 2 and bits.size > 0, f"shape {bits.shape}")
        sane(int(bits.max()) < 1 << 10, "a bit above the tenth")


def run_lengths(path: Path) -> None:
    for drawing in read_annotations(path).values():
        for rle in drawing.values():
            mask = decode_rle(rle)
            sane(mask.dtype == bool and list(mask.shape) == list(rle["size"]), "another shape")


def table(path: Path) -> None:
    if path.name.endswith(".labels.csv"):
        for row in read_rows(path, "train"):
            sane(set(row.labels) <= {-2, -1, 0, 1, 2, 3}, f"labels {row.labels}")
            sane(-1 <= row.age <= 999 and "/" not in row.image_id, f"{row}")
    elif ".thresholds." in path.name:
        found = read_thresholds(path)
        sane(found.shape == (10,) and found.dtype == np.float64, f"shape {found.shape}")
        sane(bool(((found >= 0) & (found <= 1)).all()), "outside [0, 1]")
    else:
        read = Segmentations.read(path)
        for image_id in read.images:
            height, width = read.size(image_id)
            if height * width < 1 << 24:
                sane(sum(map(len, read.runs(image_id))) > 0, "no runs")


def state(path: Path) -> None:
    content, stated = read_checkpoint(path)
    _, tensors = plain_names(find_state_dict(content, f"{path}: "))
    for name, value in tensors.items():
        sane(isinstance(name, str), f"a name {name!r:.40}")
        if isinstance(value, np.ndarray):
            sane(value.ndim <= 8 and value.dtype.kind in "fiubV", f"{value.dtype} {value.shape}")
            value.tobytes()  # every number lies inside the file
    if stated is not None:
        sane(
            bool(np.isfinite([*stated.mean, *stated.std]).all()), "its normalization is not finite"
        )
        sane(min(stated.std) > 0, "a deviation of nought or less")


TARGETS = {
    "pictures": Target(
        corpora.pictures,
        (*m.BYTES, *[m.change_chunks] * 5),
        (partial(sane_radiograph, read_jpeg_or_png), film),
        (RadiographError, DataError),
    ),
    "masks": Target(
        corpora.masks,
        (*m.BYTES, *[m.set_digits] * 5, *[m.change_json] * 14),
        (drawings, run_lengths),
        (DataError, MaskError),
        (MaskError,),
    ),
    "tables": Target(
        corpora.tables,
        (*m.BYTES, *[m.set_digits] * 3, *[m.change_json] * 4, *[m.change_cells] * 5),
        (table,),
        (DataError, ChexlocalizeError),
    ),
    "weights": Target(
        corpora.weights,
        (*m.BYTES, *[m.change_header] * 3, *[m.change_directory] * 4),
        (state,),
        (ValueError,),
    ),
    "dicoms": Target(
        corpora.dicoms,
        (*m.BYTES, *[m.change_elements] * 6),
        (partial(sane_radiograph, read_dicom),),
        (RadiographError,),
    ),
}


def descend(
    target: Target, whole: int, corpus: corpora.Corpus, chance: random.Random
) -> tuple[str, bytes]:
    """Returns a changed file: one to three changes to the corpus, whose first are `whole`."""
    ending, content = chance.choice(corpus[:whole] if chance.random() < 0.6 else corpus)
    other = chance.choice(corpus[:whole])[1]
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        if content:
            content = chance.choice(target.mutations)(content, chance, other or b"\0")
    return ending, content[: 1 << 20]


def attempt(target: Target, path: Path) -> list[tuple[str, str]]:
    """Returns what came of each reader: a kind (accepted, refused, fault) and a message."""
    return [_attempt(target, reader, path) for reader in target.readers]


def _attempt(target: Target, reader: Reader, path: Path) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "invalid value|overflow", RuntimeWarning)
            reader(path)
    except AssertionError as error:
        return "fault", str(error)
    except target.refusals as error:
        message, kind = str(error), type(error)
        # Nor does a ValueError of Python's or NumPy's own name the file.
        if path.name not in message and kind not in target.nameless:
            return "fault", f"{kind.__name__} does not name the file: {message}"
        if "MemoryError" in message or "RuntimeWarning" in message:
            return "fault", message
        return "refused", message.replace(str(path), "FILE")
    except BaseException as error:
        return "fault", f"{type(error).__name__}: {error}"
    return "accepted", ""
