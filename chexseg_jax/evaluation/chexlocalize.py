"""CheXlocalize's files: predictions as run lengths, IoU by image, and the summary with intervals."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from tqdm import tqdm

from chexseg_jax.evaluation.metrics import Counts, Interval, overlap, ratio, stack
from chexseg_jax.evaluation.thresholds import Gates
from chexseg_jax.images import content_size, content_slices, resize
from chexseg_jax.masks import MaskError, area, fill_runs, is_drawn, runs_of, shared_area, size_of
from chexseg_jax.pathologies import PATHOLOGIES, canonical
from chexseg_jax.runtime.atomic_write import atomic_write
from chexseg_jax.runtime.stage_folder import write_csv

ORDER = sorted(range(len(PATHOLOGIES)), key=PATHOLOGIES.__getitem__)
"""CheXlocalize sorts its columns and rows by name."""


DAMAGED = (csv.Error, OverflowError, RecursionError)
"""What reading raises beside the usual of a file that is damaged."""


class ChexlocalizeError(ValueError):
    """A file that is not the table it should be."""


def write_predictions(path: Path, images: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Writes {image id: {pathology: run lengths}} at native size, an image at a time."""
    with atomic_write(path) as aside, aside.open("w") as file:
        file.write("{")
        for number, (image_id, rles) in enumerate(images):
            file.write(",\n" if number else "")
            file.write(f"{json.dumps(image_id)}: {json.dumps(rles)}")
        file.write("}\n")


def write_per_image(
    path: Path,
    image_ids: Sequence[str],
    values: Float[np.ndarray, "n k"],
    *,
    whole_numbers: bool = False,
) -> None:
    """Writes `iou_results_per_cxr.csv`; a value that does not count is left blank.

    With `whole_numbers`, as hits are, a column without blanks has no decimals, as pandas has it.
    """
    bare = whole_numbers & ~np.isnan(values).any(0)
    rows = [[PATHOLOGIES[k] for k in ORDER] + ["img_id"]]
    for image_id, row in zip(image_ids, values, strict=True):
        cells = [str(int(row[k])) if bare[k] else _cell(row[k]) for k in ORDER]
        rows.append([*cells, image_id])
    write_csv(path, rows)


def write_bootstrap(path: Path, replicates: Float[np.ndarray, "r k"]) -> None:
    """Writes `iou_bootstrap_results_per_cxr.csv`: a row a replicate, columns in the order of masks."""
    write_csv(path, [PATHOLOGIES, *([_cell(value) for value in row] for row in replicates)])


def write_summary(path: Path, intervals: Sequence[Interval]) -> None:
    """Writes `iou_summary_results.csv`: name, lower, mean, upper, to three decimals."""
    rows: list[list[Any]] = [["name", "lower", "mean", "upper"]]
    for k in ORDER:
        row = intervals[k]
        # NumPy's rounding, as CheXlocalize's: Python's differs where the fourth digit is a 5.
        numbers = np.round([row.lower, row.mean, row.upper], 3)
        rows.append([PATHOLOGIES[k], *map(_cell, numbers)])
    write_csv(path, rows)


def write_thresholds(path: Path, thresholds: Float[np.ndarray, "k"]) -> None:
    """Writes thresholds as CheXlocalize's `tuning_results.csv` has them: threshold, task."""
    rows = [[_cell(thresholds[k]), PATHOLOGIES[k]] for k in ORDER]
    write_csv(path, [["threshold", "task"], *rows])


def write_gates(path: Path, gates: Gates) -> None:
    """Writes `gates.csv` as CheXlocalize does: `prob_threshold,mIoU,task`, by name."""
    rows = [[_cell(gates.cutoffs[k]), _cell(gates.ious[k]), PATHOLOGIES[k]] for k in ORDER]
    write_csv(path, [["prob_threshold", "mIoU", "task"], *rows])


def read_thresholds(path: Path) -> Float[np.ndarray, "k"]:
    """Returns thresholds in the order of mask channels, from our CSV or the release's JSON list.

    Raises:
        ChexlocalizeError: there is not one number on [0, 1] for each pathology; the message names the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            found = dict(zip(PATHOLOGIES, json.loads(text), strict=True))
        else:
            rows = csv.DictReader(text.splitlines())
            found = {canonical(row["task"]): float(row["threshold"]) for row in rows}
        values = np.array([found[name] for name in PATHOLOGIES], np.float64)
    except OSError as error:
        raise ChexlocalizeError(
            f"{path}: cannot be read ({error.strerror}); check the file"
        ) from None
    except (LookupError, TypeError, ValueError, AttributeError, *DAMAGED) as error:
        raise ChexlocalizeError(
            f"{path}: not a threshold for each of the ten ({error!r:.80})"
        ) from None
    if values.shape != (len(PATHOLOGIES),):
        raise ChexlocalizeError(f"{path}: a threshold is no number")
    if not ((values >= 0) & (values <= 1)).all():
        raise ChexlocalizeError(f"{path}: a threshold lies outside [0, 1]")
    return values


def _cell(value: float) -> str:
    return "" if np.isnan(value) else repr(float(value))


Runs = list[Int64[np.ndarray, "r"]]


def read_json(path: Path) -> dict[str, dict[str, Any]]:
    """Returns what a file says of each image, pathologies under our names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ChexlocalizeError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ChexlocalizeError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict) or not content:
        raise ChexlocalizeError(f"{path}: must be an object of images by id, and hold at least one")
    return {image_id: _named(path, image_id, entry) for image_id, entry in content.items()}


def _named(path: Path, image_id: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ChexlocalizeError(f"{path}: {image_id}: must be an object of pathologies by name")
    named = {canonical(name): value for name, value in entry.items()}
    unknown = sorted(named.keys() - set(PATHOLOGIES))
    if unknown:
        raise ChexlocalizeError(
            f"{path}: {image_id}: unknown pathology {unknown[0]!r:.80}; known are "
            + ", ".join(PATHOLOGIES)
        )
    if len(named) < len(entry):
        raise ChexlocalizeError(f"{path}: {image_id}: a pathology is there under two names")
    return named


@dataclass(frozen=True)
class Segmentations:
    """The masks of a file, decoded no further than to run lengths, an image at a time."""

    path: Path
    images: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "Drawings":
        """Reads a file; its masks are checked when they are used."""
        images = read_json(path)
        for image_id, rles in images.items():
            for name in PATHOLOGIES:
                if name not in rles:
                    raise ChexlocalizeError(
                        f"{path}: {image_id}: {name} is missing; empty masks count too"
                    )
        return cls(path, images)

    def size(self, image_id: str) -> tuple[int, int]:
        """Returns the (height, width) of an image, which all its masks must share."""
        sizes = {}
        for name in PATHOLOGIES:
            try:
                sizes[name] = size_of(self.images[image_id][name])
            except MaskError as error:
                raise self._wrong(image_id, name, error) from None
        first = sizes[PATHOLOGIES[0]]
        for name, size in sizes.items():
            if size != first:
                raise self._wrong(
                    image_id,
                    name,
                    f"{size[0]} x {size[1]} pixels, where {PATHOLOGIES[0]} has "
                    f"{first[0]} x {first[1]}",
                )
        return first

    def runs(self, image_id: str) -> Runs:
        """Returns an image's run lengths, a pathology each."""
        rles, found = self.images[image_id], []
        for name in PATHOLOGIES:
            try:
                found.append(runs_of(rles[name]))
            except MaskError as error:
                raise self._wrong(image_id, name, error) from None
        return found

    def letterboxed(self, image_id: str, side: int) -> Bool[np.ndarray, "s s k"]:
        """Returns an image's masks in the letterbox; nothing drawn where the file lacks the image.

        As `letterbox_masks` has it, without ten masks of native size in memory.
        """
        framed = np.zeros((side, side, len(PATHOLOGIES)), bool)
        if image_id not in self.images:
            return framed
        height, width = self.size(image_id)
        where = content_slices(height, width, side)
        for k, runs in enumerate(self.runs(image_id)):
            if runs.size > 1:
                mask = fill_runs(runs, height, width)
                grey = np.ascontiguousarray(mask).view(np.uint8) * np.uint8(255)
                framed[(*where, k)] = resize(grey, *content_size(height, width, side)) >= 128
        return framed

    def _wrong(self, image_id: str, name: str, what: object) -> ChexlocalizeError:
        return ChexlocalizeError(f"{self.path}: {image_id}: {name}: {what}")


def require_images(truth: Segmentations, drawn: Segmentations) -> None:
    """Checks that a model's file holds every image of the ground truth."""
    missing = sorted(truth.images.keys() - drawn.images.keys())
    if missing:
        raise ChexlocalizeError(
            f"{drawn.path}: {missing[0]} is missing, one of {len(missing)} images that {truth.path} "
            "has; add them, or give --allow-missing to count them as empty, as CheXlocalize does"
        )


def images_that_count(
    truth: Segmentations, drawn: Segmentations, *, true_pos_only: bool
) -> list[str]:
    """Returns the images of the ground truth and, unless `true_pos_only`, those drawn elsewhere."""
    others: Iterable[str] = () if true_pos_only else drawn.images
    return sorted({*truth.images, *others})


@dataclass(frozen=True)
class Areas:
    """Pixels at native size, by image and pathology."""

    shared: Int[np.ndarray, "n k"]
    drawn: Int[np.ndarray, "n k"]
    truths: Int[np.ndarray, "n k"]
    images: Int[np.ndarray, "n 1"]

    def __getitem__(self, rows: Bool[np.ndarray, "n"]) -> "Areas":
        """Returns the areas of some images."""
        return Areas(self.shared[rows], self.drawn[rows], self.truths[rows], self.images[rows])

    def ious(self, *, true_pos_only: bool) -> Float[np.ndarray, "n k"]:
        """Returns IoU; NaN where neither is drawn or, with `true_pos_only`, where one is not."""
        values = ratio(self.shared, self.drawn + self.truths - self.shared)
        if true_pos_only:
            values[(self.drawn == 0) | (self.truths == 0)] = np.nan
        return values

    def rates(self) -> dict[str, Float[np.ndarray, "k"]]:
        """Returns precision, recall and specificity, pixels of all images together."""
        shared, drawn, truths = (x.sum(0) for x in (self.shared, self.drawn, self.truths))
        blank = self.images.sum(0) - truths
        return {
            "precision": ratio(shared, drawn),
            "recall/sensitivity": ratio(shared, truths),
            "specificity": ratio(blank - (drawn - shared), blank),
        }


def measure(
    truth: Segmentations, drawn: Segmentations, image_ids: Sequence[str], label: str
) -> Areas:
    """Returns areas from run lengths alone, an image at a time; a missing mask is an empty one."""
    rows = [
        _measure_image(truth, drawn, image_id)
        for image_id in tqdm(image_ids, desc=label, unit=" images")
    ]
    shared, areas, truths, pixels = (
        np.array(column, np.int64) for column in zip(*rows, strict=True)
    )
    return Areas(shared, areas, truths, pixels[:, None])


def _measure_image(
    truth: Segmentations, drawn: Segmentations, image_id: str
) -> tuple[list[int], list[int], list[int], int]:
    sides = [side for side in (truth, drawn) if image_id in side.images]
    sizes = [side.size(image_id) for side in sides]
    if len(set(sizes)) > 1:
        (height, width), (h, w) = sizes
        raise ChexlocalizeError(
            f"{drawn.path}: {image_id}: its masks have {h} x {w} pixels, where those of {truth.path} "
            f"have {height} x {width}; they must have the image's own size"
        )
    nothing = [np.zeros(1, np.int64)] * len(PATHOLOGIES)
    truths, masks = (
        side.runs(image_id) if image_id in side.images else nothing for side in (truth, drawn)
    )
    return (
        [shared_area(a, b) for a, b in zip(truths, masks, strict=True)],
        [area(runs) for runs in masks],
        [area(runs) for runs in truths],
        sizes[0][0] * sizes[0][1],
    )


def pool(
    truth: Segmentations, methods: Mapping[str, Segmentations], image_ids: Sequence[str], side: int
) -> dict[str, Counts]:
    """Returns each method's counts in the letterbox, an image a row."""

    def count(image_id: str) -> list[Counts]:
        truths = truth.letterboxed(image_id, side)
        return [overlap(method.letterboxed(image_id, side), truths) for method in methods.values()]

    with ThreadPoolExecutor() as threads:
        bar = tqdm(total=len(image_ids), desc=f"letterbox {side}", unit=" images")
        rows = []
        # A few images at a time, so that an error is not waited for.
        waiting: Iterator[str] = iter(image_ids)
        while some := list(islice(waiting, 32)):
            rows += list(threads.map(count, some))
            bar.update(len(some))
        bar.close()
    return {name: stack([row[i] for row in rows]) for i, name in enumerate(methods)}


def hit_points(path: Path, truth: Segmentations) -> Float[np.ndarray, "n k"]:
    """Returns 1 where a point of {image id: {pathology: [[x, y], ...]}} lies in its truth, else 0.

    NaN where nothing is drawn in truth; where there is no point, it is a miss. Images are those of the
    ground truth, sorted.
    """
    points = read_json(path)
    image_ids = sorted(truth.images)
    if not points.keys() & truth.images.keys():
        raise ChexlocalizeError(
            f"{path}: {min(points)}: neither this nor any other image is in {truth.path}"
        )
    values = np.full((len(image_ids), len(PATHOLOGIES)), np.nan)
    for i, image_id in enumerate(tqdm(image_ids, desc="points", unit=" images")):
        height, width = truth.size(image_id)
        for k, runs in enumerate(truth.runs(image_id)):
            given = points.get(image_id, {}).get(PATHOLOGIES[k], [])
            where = f"{path}: {image_id}: {PATHOLOGIES[k]}"
            spots = _pixels(given, height, width, where)
            if runs.size > 1 and area(runs):
                values[i, k] = any(is_drawn(runs, height, y, x) for x, y in spots)
    return values


def _pixels(points: Any, height: int, width: int, where: str) -> list[tuple[int, int]]:
    if not isinstance(points, list):
        raise ChexlocalizeError(f"{where}: must be a list of points [x, y]")
    found = []
    for point in points:
        numbers = isinstance(point, list) and all(isinstance(v, int | float) for v in point)
        if not numbers or len(point) != 2:
            raise ChexlocalizeError(f"{where}: a point must be [x, y] in pixels, got {point!r:.80}")
        if not (0 <= point[0] < width and 0 <= point[1] < height):
            raise ChexlocalizeError(
                f"{where}: the point {point} lies outside the image of {height} x {width} pixels"
            )
        found.append((int(point[0]), int(point[1])))
    return found
