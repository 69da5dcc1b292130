"""The readers of each kind of file, their documented errors, and checks of what they accept."""

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
    """A kind of file: its valid originals, their mutations, their readers and the documented errors.

    The errors in `nameless` need not name the file, because the reader does not know it and its callers
    add it.
    """

    corpus: Callable[[], corpora.Corpus]
    mutations: tuple[m.Mutation, ...]
    readers: tuple[Reader, ...]
    errors: tuple[type[Exception], ...]
    nameless: tuple[type[Exception], ...] = ()


def check(condition: bool, problem: str) -> None:
    """Raise if an accepted file gave an invalid result."""
    if not condition:
        raise AssertionError(f"accepted, but {problem}")


def check_radiograph(read: Callable[[Path], Radiograph], path: Path) -> None:
    radiograph = read(path)
    image = radiograph.image
    check(image.dtype == np.uint8 and image.ndim == 3, f"{image.dtype} {image.shape}")
    check(image.shape[2] == 1 and image.size > 0, f"shape {image.shape}")
    if radiograph.spacing is not None:
        sides = (radiograph.spacing.rows, radiograph.spacing.columns)
        check(all(np.isfinite(side) and side > 0 for side in sides), f"spacing {sides}")


def check_listed_image(path: Path) -> None:
    row = Row(2, "patient1", "study1", path.name, "Male", 50, "AP", (0,) * 14)
    image = ListedImage(
        row, "train.csv", str(path), str(path.parent.resolve()), path.stat().st_size
    )
    jpeg = read_gray_jpeg(image)
    check(jpeg.data[:2] == b"\xff\xd8" and jpeg.height > 0 < jpeg.width, "no JPEG")


def check_annotations(path: Path) -> None:
    for annotation in read_annotations(path).values():
        error: MaskError | None = None
        try:
            presence_bits(annotation)
        except MaskError as raised:
            error = raised
        bits = rasterise(annotation)
        check(error is None, f"its bits are rejected: {error}")
        check(bits.dtype == np.uint16 and bits.ndim == 2 and bits.size > 0, f"shape {bits.shape}")
        check(int(bits.max()) < 1 << 10, "a bit above the tenth")


def check_run_lengths(path: Path) -> None:
    for annotation in read_annotations(path).values():
        for rle in annotation.values():
            mask = decode_rle(rle)
            check(mask.dtype == bool and list(mask.shape) == list(rle["size"]), "another shape")


def check_table(path: Path) -> None:
    if path.name.endswith(".labels.csv"):
        for row in read_rows(path, "train"):
            check(set(row.labels) <= {-2, -1, 0, 1, 2, 3}, f"labels {row.labels}")
            check(-1 <= row.age <= 999 and "/" not in row.image_id, f"{row}")
    elif ".thresholds." in path.name:
        thresholds = read_thresholds(path)
        check(
            thresholds.shape == (10,) and thresholds.dtype == np.float64,
            f"shape {thresholds.shape}",
        )
        sound = (thresholds > 0) & (thresholds <= 1) | np.isnan(thresholds)
        check(bool(sound.all()), "neither on (0, 1] nor NaN")
    else:
        file = Segmentations.read(path)
        for image_id in file.images:
            height, width = file.size(image_id)
            if height * width < 1 << 24:
                check(sum(map(len, file.runs(image_id))) > 0, "no runs")


def check_state_dict(path: Path) -> None:
    content, normalization = read_checkpoint(path)
    _, tensors = plain_names(find_state_dict(content, f"{path}: "))
    for name, value in tensors.items():
        check(isinstance(name, str), f"a name {name!r:.40}")
        if isinstance(value, np.ndarray):
            check(value.ndim <= 8 and value.dtype.kind in "fiubV", f"{value.dtype} {value.shape}")
            value.tobytes()  # every number lies inside the file
    if normalization is not None:
        check(
            bool(np.isfinite([*normalization.mean, *normalization.std]).all()),
            "its normalization is not finite",
        )
        check(min(normalization.std) > 0, "a standard deviation of 0 or less")


TARGETS = {
    "pictures": Target(
        corpora.pictures,
        (*m.BYTES, *[m.change_chunks] * 5),
        (partial(check_radiograph, read_jpeg_or_png), check_listed_image),
        (RadiographError, DataError),
    ),
    "masks": Target(
        corpora.masks,
        (*m.BYTES, *[m.set_digits] * 5, *[m.change_json] * 14),
        (check_annotations, check_run_lengths),
        (DataError, MaskError),
        (MaskError,),
    ),
    "tables": Target(
        corpora.tables,
        (*m.BYTES, *[m.set_digits] * 3, *[m.change_json] * 4, *[m.change_cells] * 5),
        (check_table,),
        (DataError, ChexlocalizeError),
    ),
    "weights": Target(
        corpora.weights,
        (*m.BYTES, *[m.change_header] * 3, *[m.change_directory] * 4),
        (check_state_dict,),
        (ValueError,),
    ),
    "dicoms": Target(
        corpora.dicoms,
        (*m.BYTES, *[m.change_elements] * 6),
        (partial(check_radiograph, read_dicom),),
        (RadiographError,),
    ),
}


def mutate(
    target: Target, originals: int, corpus: corpora.Corpus, rng: random.Random
) -> tuple[str, bytes]:
    """Apply one to three mutations to a file of the corpus, most often one of its first `originals`."""
    ending, content = rng.choice(corpus[:originals] if rng.random() < 0.6 else corpus)
    other = rng.choice(corpus[:originals])[1]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if content:
            content = rng.choice(target.mutations)(content, rng, other or b"\0")
    return ending, content[: 1 << 20]


def try_readers(target: Target, path: Path) -> list[tuple[str, str]]:
    """Return each reader's outcome: accepted, rejected or fault, and a message."""
    return [_try_reader(target, reader, path) for reader in target.readers]


def _try_reader(target: Target, reader: Reader, path: Path) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "invalid value|overflow", RuntimeWarning)
            reader(path)
    except AssertionError as error:
        return "fault", str(error)
    except target.errors as error:
        message, kind = str(error), type(error)
        # `errors` may include ValueErrors of Python and NumPy, which do not name the file.
        if path.name not in message and kind not in target.nameless:
            return "fault", f"{kind.__name__} does not name the file: {message}"
        if "MemoryError" in message or "RuntimeWarning" in message:
            return "fault", message
        return "rejected", message.replace(str(path), "FILE")
    except BaseException as error:
        return "fault", f"{type(error).__name__}: {error}"
    return "accepted", ""
