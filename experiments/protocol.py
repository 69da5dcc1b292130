"""CheXlocalize's protocol over JSON files of run lengths: what is read, and what is counted of it.

A file is {image id: {pathology: {"size": [h, w], "counts": str}}} with all ten pathologies. The ground
truth, and a reader's file, leave out images where nothing is drawn; a model's must hold every image of
the ground truth, unless it is asked to count as CheXlocalize does, which takes a missing one for empty.
"""

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

from chexseg_jax.images import content_size, content_slices, resize
from chexseg_jax.masks import MaskError, area, fill_runs, is_drawn, runs_of, shared_area, size_of
from chexseg_jax.metrics import Counts, overlap, ratio, stack
from chexseg_jax.pathologies import PATHOLOGIES, canonical
from datasets.errors import DataError

Runs = list[Int64[np.ndarray, "r"]]


def read_json(path: Path) -> dict[str, dict[str, Any]]:
    """Returns what a file says of each image, pathologies under our names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: must be an object of images by id, and hold at least one")
    return {image_id: _named(path, image_id, entry) for image_id, entry in content.items()}


def _named(path: Path, image_id: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DataError(f"{path}: {image_id}: must be an object of pathologies by name")
    named = {canonical(name): value for name, value in entry.items()}
    unknown = sorted(named.keys() - set(PATHOLOGIES))
    if unknown:
        raise DataError(
            f"{path}: {image_id}: unknown pathology {unknown[0]!r:.80}; known are "
            + ", ".join(PATHOLOGIES)
        )
    if len(named) < len(entry):
        raise DataError(f"{path}: {image_id}: a pathology is there under two names")
    return named


@dataclass(frozen=True)
class Drawings:
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
                    raise DataError(f"{path}: {image_id}: {name} is missing; empty masks count too")
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

    def framed(self, image_id: str, side: int) -> Bool[np.ndarray, "s s k"]:
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

    def _wrong(self, image_id: str, name: str, what: object) -> DataError:
        return DataError(f"{self.path}: {image_id}: {name}: {what}")


def require_images(truth: Drawings, drawn: Drawings) -> None:
    """Checks that a model's file holds every image of the ground truth."""
    missing = sorted(truth.images.keys() - drawn.images.keys())
    if missing:
        raise DataError(
            f"{drawn.path}: {missing[0]} is missing, one of {len(missing)} images that {truth.path} "
            "has; add them, or give --allow-missing to count them as empty, as CheXlocalize does"
        )


def images_that_count(truth: Drawings, drawn: Drawings, *, true_pos_only: bool) -> list[str]:
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


def measure(truth: Drawings, drawn: Drawings, image_ids: Sequence[str], label: str) -> Areas:
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
    truth: Drawings, drawn: Drawings, image_id: str
) -> tuple[list[int], list[int], list[int], int]:
    sides = [side for side in (truth, drawn) if image_id in side.images]
    sizes = [side.size(image_id) for side in sides]
    if len(set(sizes)) > 1:
        (height, width), (h, w) = sizes
        raise DataError(
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
    truth: Drawings, methods: Mapping[str, Drawings], image_ids: Sequence[str], side: int
) -> dict[str, Counts]:
    """Returns each method's counts in the letterbox, an image a row."""

    def count(image_id: str) -> list[Counts]:
        truths = truth.framed(image_id, side)
        return [overlap(method.framed(image_id, side), truths) for method in methods.values()]

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


def hit_points(path: Path, truth: Drawings) -> Float[np.ndarray, "n k"]:
    """Returns 1 where a point of {image id: {pathology: [[x, y], ...]}} lies in its truth, else 0.

    NaN where nothing is drawn in truth; where there is no point, it is a miss. Images are those of the
    ground truth, sorted.
    """
    points = read_json(path)
    image_ids = sorted(truth.images)
    if not points.keys() & truth.images.keys():
        raise DataError(
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
        raise DataError(f"{where}: must be a list of points [x, y]")
    found = []
    for point in points:
        numbers = isinstance(point, list) and all(isinstance(v, int | float) for v in point)
        if not numbers or len(point) != 2:
            raise DataError(f"{where}: a point must be [x, y] in pixels, got {point!r:.80}")
        if not (0 <= point[0] < width and 0 <= point[1] < height):
            raise DataError(
                f"{where}: the point {point} lies outside the image of {height} x {width} pixels"
            )
        found.append((int(point[0]), int(point[1])))
    return found
