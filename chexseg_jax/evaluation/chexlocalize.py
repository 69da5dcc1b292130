"""CheXlocalize evaluation: its JSON and CSV files, and the protocol of its `eval.py`.

Files of masks are scored from run lengths alone, an image at a time: per-image IoU at native size, pixel
rates, hits of points, and the paper's IoU pooled in the letterbox. Tables equal those of `eval.py` to
the last digit.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from tqdm import tqdm

from chexseg_jax.evaluation.metrics import Counts, Interval, iou_of_areas, overlap, ratio, stack
from chexseg_jax.evaluation.thresholds import Gates
from chexseg_jax.images import content_size, content_slices, resize_mask
from chexseg_jax.masks import (
    MaskError,
    area,
    contains,
    fill_runs,
    read_image_objects,
    runs_of,
    shared_area,
    size_of,
)
from chexseg_jax.pathologies import PATHOLOGIES, canonical
from chexseg_jax.runtime.atomic_write import atomic_write
from chexseg_jax.runtime.stage_folder import write_csv

ORDER = sorted(range(len(PATHOLOGIES)), key=PATHOLOGIES.__getitem__)
"""CheXlocalize sorts its columns and rows by name."""

IMAGES_AT_ONCE = 32
"""Images submitted to the threads together, so that an error ends the work early."""

Runs = list[Int64[np.ndarray, "r"]]
"""One image's run lengths, one array for each pathology."""


class ChexlocalizeError(ValueError):
    """A file of masks, points or thresholds is malformed: which, where, and what to do."""


def write_table(path: Path, head: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV of plain numbers; NaN is left blank."""

    def cell(value: Any) -> Any:
        value = value.item() if isinstance(value, np.generic) else value
        return "" if isinstance(value, float) and value != value else value

    write_csv(path, [head, *([cell(value) for value in row] for row in rows)])


def write_per_image(
    path: Path,
    image_ids: Sequence[str],
    values: Float[np.ndarray, "n k"],
    *,
    integers: bool = False,
) -> None:
    """Write `iou_results_per_cxr.csv`, or its like for hits, which are `integers`.

    As pandas does, a column of integers is written without decimals unless a value is missing.
    """
    bare = integers & ~np.isnan(values).any(0)
    rows = (
        [*(int(row[k]) if bare[k] else row[k] for k in ORDER), image_id]
        for image_id, row in zip(image_ids, values, strict=True)
    )
    write_table(path, [*(PATHOLOGIES[k] for k in ORDER), "img_id"], rows)


def write_bootstrap(path: Path, replicates: Float[np.ndarray, "r k"]) -> None:
    """Write `iou_bootstrap_results_per_cxr.csv`: a row a replicate, columns in mask order."""
    write_table(path, PATHOLOGIES, replicates)


def write_summary(path: Path, intervals: Sequence[Interval]) -> None:
    """Write `iou_summary_results.csv`: name, lower, mean, upper, to three decimals."""
    # NumPy rounds as CheXlocalize does; Python differs where the fourth digit is a 5.
    rounded = [np.round([row.lower, row.mean, row.upper], 3) for row in intervals]
    rows = ([PATHOLOGIES[k], *rounded[k]] for k in ORDER)
    write_table(path, ["name", "lower", "mean", "upper"], rows)


def write_thresholds(path: Path, thresholds: Float[np.ndarray, "k"]) -> None:
    """Write thresholds in the columns of `tuning_results.csv`: threshold, task; blank if not found."""
    write_table(path, ["threshold", "task"], ([thresholds[k], PATHOLOGIES[k]] for k in ORDER))


def write_gates(path: Path, gates: Gates) -> None:
    """Write `gates.csv`: prob_threshold, mIoU, task, sorted by name."""
    rows = ([gates.cutoffs[k], gates.ious[k], PATHOLOGIES[k]] for k in ORDER)
    write_table(path, ["prob_threshold", "mIoU", "task"], rows)


def read_thresholds(path: Path) -> Float[np.ndarray, "k"]:
    """Read thresholds in the order of mask channels, from our CSV or the release's JSON list.

    NaN stands for a pathology that was not found: a blank in our CSV. So does 0, which the release
    chooses where no mask meets the finding, and which would draw every pixel of an image.

    Raises:
        ChexlocalizeError: there is neither a number on [0, 1] nor a blank for each pathology.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            named = dict(zip(PATHOLOGIES, json.loads(text), strict=True))
        else:
            rows = csv.DictReader(text.splitlines())
            named = {canonical(row["task"]): float(row["threshold"] or "nan") for row in rows}
        thresholds = np.array([named[name] for name in PATHOLOGIES], np.float64)
    except OSError as error:
        raise ChexlocalizeError(
            f"{path}: cannot be read ({error.strerror}); check the file"
        ) from None
    except (
        *(LookupError, TypeError, ValueError, AttributeError),
        *(csv.Error, OverflowError, RecursionError),
    ) as error:
        raise ChexlocalizeError(
            f"{path}: not a threshold for each of the ten pathologies ({error!r:.80})"
        ) from None
    if thresholds.shape != (len(PATHOLOGIES),):
        raise ChexlocalizeError(f"{path}: a threshold is not a number")
    if not ((thresholds >= 0) & (thresholds <= 1) | np.isnan(thresholds)).all():
        raise ChexlocalizeError(f"{path}: a threshold lies outside [0, 1]")
    return np.where(thresholds > 0, thresholds, np.nan)


def write_predictions(path: Path, images: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Write {image id: {pathology: run lengths}} at native size, one image in memory at a time."""
    with atomic_write(path) as aside, aside.open("w") as file:
        file.write("{")
        for number, (image_id, rles) in enumerate(images):
            file.write(",\n" if number else "")
            file.write(f"{json.dumps(image_id)}: {json.dumps(rles)}")
        file.write("}\n")


def _read_images(path: Path) -> dict[str, dict[str, Any]]:
    """Read a file of masks or points by image id and pathology, under our names."""
    try:
        images = read_image_objects(path)
    except MaskError as error:
        raise ChexlocalizeError(str(error)) from None
    if not images:
        raise ChexlocalizeError(f"{path}: must hold at least one image")
    return {image_id: _canonical_names(path, image_id, entry) for image_id, entry in images.items()}


def _canonical_names(path: Path, image_id: str, entry: Mapping[str, Any]) -> dict[str, Any]:
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
    """The masks of a file, decoded to run lengths an image at a time."""

    path: Path
    images: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "Segmentations":
        """Read a file; its masks are checked when they are used."""
        images = _read_images(path)
        for image_id, rles in images.items():
            for name in PATHOLOGIES:
                if name not in rles:
                    raise ChexlocalizeError(
                        f"{path}: {image_id}: {name} is missing; an empty mask must be there too"
                    )
        return cls(path, images)

    def size(self, image_id: str) -> tuple[int, int]:
        """Return the (height, width) of an image, which all its masks must share."""
        height, width = self._decode(image_id, PATHOLOGIES[0], size_of)
        for name in PATHOLOGIES[1:]:
            h, w = self._decode(image_id, name, size_of)
            if (h, w) != (height, width):
                raise ChexlocalizeError(
                    f"{self.path}: {image_id}: {name}: {h} x {w} pixels, where {PATHOLOGIES[0]} has "
                    f"{height} x {width}"
                )
        return height, width

    def runs(self, image_id: str) -> Runs:
        """Return an image's run lengths by pathology."""
        return [self._decode(image_id, name, runs_of) for name in PATHOLOGIES]

    def letterboxed(self, image_id: str, side: int) -> Bool[np.ndarray, "s s k"]:
        """Return an image's masks in the letterbox, like `letterbox_masks`; empty if it is missing."""
        masks = np.zeros((side, side, len(PATHOLOGIES)), bool)
        if image_id not in self.images:
            return masks
        height, width = self.size(image_id)
        inside = content_slices(height, width, side)
        for k, runs in enumerate(self.runs(image_id)):
            if runs.size > 1:
                mask = fill_runs(runs, height, width)
                masks[(*inside, k)] = resize_mask(mask, *content_size(height, width, side))
        return masks

    def _decode(self, image_id: str, name: str, decode: Callable[[Any], Any]) -> Any:
        try:
            return decode(self.images[image_id][name])
        except MaskError as error:
            raise ChexlocalizeError(f"{self.path}: {image_id}: {name}: {error}") from None


def require_images(targets: Segmentations, predictions: Segmentations) -> None:
    """Check that a model's file holds every image of the ground truth."""
    missing = sorted(targets.images.keys() - predictions.images.keys())
    if missing:
        raise ChexlocalizeError(
            f"{predictions.path}: {missing[0]} is missing, one of {len(missing)} images that "
            f"{targets.path} has; add them, or give --allow-missing to count them as empty, as "
            "CheXlocalize does"
        )


def scored_images(
    targets: Segmentations, predictions: Segmentations, *, true_pos_only: bool
) -> list[str]:
    """List the images of the ground truth and, unless `true_pos_only`, those of the predictions."""
    others: Iterable[str] = () if true_pos_only else predictions.images
    return sorted({*targets.images, *others})


@dataclass(frozen=True)
class Areas:
    """Pixels at native size, by image and pathology."""

    intersection: Int[np.ndarray, "n k"]
    predicted_area: Int[np.ndarray, "n k"]
    target_area: Int[np.ndarray, "n k"]
    image_area: Int[np.ndarray, "n 1"]

    def __getitem__(self, rows: Bool[np.ndarray, "n"]) -> "Areas":
        """Select images."""
        return Areas(*(values[rows] for values in vars(self).values()))

    def ious(self, *, true_pos_only: bool) -> Float[np.ndarray, "n k"]:
        """Return the IoU of each image and pathology; see `iou_of_areas`."""
        return iou_of_areas(
            self.intersection, self.predicted_area, self.target_area, true_pos_only=true_pos_only
        )

    def rates(self) -> dict[str, Float[np.ndarray, "k"]]:
        """Return precision, recall and specificity over the pixels of all images."""
        intersection, predicted, target, image = (x.sum(0) for x in vars(self).values())
        negative = image - target
        return {
            "precision": ratio(intersection, predicted),
            "recall/sensitivity": ratio(intersection, target),
            "specificity": ratio(negative - (predicted - intersection), negative),
        }


def measure_areas(
    targets: Segmentations, predictions: Segmentations, image_ids: Sequence[str], label: str
) -> Areas:
    """Measure areas from run lengths alone, an image at a time; a missing image is empty."""
    rows = [
        _measure_image(targets, predictions, image_id)
        for image_id in tqdm(image_ids, desc=label, unit=" images")
    ]
    return Areas(*(np.array(column, np.int64) for column in zip(*rows, strict=True)))


def _measure_image(
    targets: Segmentations, predictions: Segmentations, image_id: str
) -> tuple[list[int], list[int], list[int], list[int]]:
    present = [file for file in (targets, predictions) if image_id in file.images]
    sizes = [file.size(image_id) for file in present]
    if len(set(sizes)) > 1:
        (height, width), (h, w) = sizes
        raise ChexlocalizeError(
            f"{predictions.path}: {image_id}: its masks have {h} x {w} pixels, where those of "
            f"{targets.path} have {height} x {width}; they must have the image's own size"
        )
    empty = [np.zeros(1, np.int64)] * len(PATHOLOGIES)
    target_runs, predicted_runs = (
        file.runs(image_id) if image_id in file.images else empty for file in (targets, predictions)
    )
    return (
        [shared_area(a, b) for a, b in zip(target_runs, predicted_runs, strict=True)],
        [area(runs) for runs in predicted_runs],
        [area(runs) for runs in target_runs],
        [sizes[0][0] * sizes[0][1]],
    )


def letterbox_counts(
    targets: Segmentations,
    methods: Mapping[str, Segmentations],
    image_ids: Sequence[str],
    side: int,
) -> dict[str, Counts]:
    """Count each method's pixels in the letterbox, an image a row."""

    def count(image_id: str) -> list[Counts]:
        masks = targets.letterboxed(image_id, side)
        return [overlap(method.letterboxed(image_id, side), masks) for method in methods.values()]

    rows: list[list[Counts]] = []
    remaining: Iterator[str] = iter(image_ids)
    with (
        ThreadPoolExecutor() as threads,
        tqdm(total=len(image_ids), desc=f"letterbox {side}", unit=" images") as bar,
    ):
        while batch := list(islice(remaining, IMAGES_AT_ONCE)):
            rows += threads.map(count, batch)
            bar.update(len(batch))
    return dict(zip(methods, map(stack, zip(*rows, strict=True)), strict=True))


def score_points(path: Path, targets: Segmentations) -> Float[np.ndarray, "n k"]:
    """Return 1 where a point of {image id: {pathology: [[x, y], ...]}} lies in its target, else 0.

    NaN where the target is empty; no point is a miss. Images are those of the ground truth, sorted.
    """
    points = _read_images(path)
    image_ids = sorted(targets.images)
    if not points.keys() & targets.images.keys():
        raise ChexlocalizeError(
            f"{path}: {min(points)}: neither this nor any other image is in {targets.path}"
        )
    hits = np.full((len(image_ids), len(PATHOLOGIES)), np.nan)
    for i, image_id in enumerate(tqdm(image_ids, desc="points", unit=" images")):
        height, width = targets.size(image_id)
        for k, runs in enumerate(targets.runs(image_id)):
            field = f"{path}: {image_id}: {PATHOLOGIES[k]}"
            entry = points.get(image_id, {}).get(PATHOLOGIES[k], [])
            pixels = _check_points(entry, height, width, field)
            if area(runs):
                hits[i, k] = any(contains(runs, height, y, x) for x, y in pixels)
    return hits


def _check_points(points: Any, height: int, width: int, field: str) -> list[tuple[int, int]]:
    if not isinstance(points, list):
        raise ChexlocalizeError(f"{field}: must be a list of points [x, y]")
    for point in points:
        numbers = isinstance(point, list) and all(isinstance(v, int | float) for v in point)
        if not numbers or len(point) != 2:
            raise ChexlocalizeError(f"{field}: a point must be [x, y] in pixels, got {point!r:.80}")
        if not (0 <= point[0] < width and 0 <= point[1] < height):
            raise ChexlocalizeError(
                f"{field}: the point {point} lies outside the image of {height} x {width} pixels"
            )
    return [(int(x), int(y)) for x, y in points]
