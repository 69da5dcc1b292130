"""Write phantoms in the layout of CheXpert and CheXlocalize."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from PIL import Image
from tqdm import tqdm

from chexseg_jax.masks import encode_rle, fill_polygons
from chexseg_jax.pathologies import PATHOLOGIES, canonical
from chexseg_jax.runtime.atomic_write import atomic_folder
from datasets.phantom.annotators import Contours
from datasets.phantom.labels import CSV_OBSERVATIONS
from datasets.phantom.study import CHEXPERT, SPLITS, ImageId, image_ids, make_phantom

COLUMNS: Final = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CSV_OBSERVATIONS)
"""The header of CheXpert's CSV files."""


def write_phantoms(
    root: Path,
    *,
    seed: int,
    train: int,
    valid: int,
    test: int,
    short_side: int = 256,
    workers: int = 0,
    progress: bool = True,
) -> None:
    """Write synthetic images, labels and masks to `root`, atomically.

    An image depends only on the seed and its position in its split, not on the number of images or
    processes.

    Args:
        root: the folder to create.
        seed: the random seed.
        train: number of images with report labels, including errors.
        valid: number of images with true labels and an expert's masks.
        test: number of images that also have a second annotator's masks.
        short_side: short side of the images in pixels.
        workers: number of processes; 0 is this one.
        progress: whether to show progress bars.

    Raises:
        FileExistsError: `root` exists.
    """
    if root.exists():
        raise FileExistsError(f"{root} exists; remove it, or write the phantoms somewhere else")
    with atomic_folder(root) as staging, _mapping(workers) as run:
        (staging / "CheXlocalize").mkdir()
        (staging / "extra").mkdir()
        for split, count in zip(SPLITS, (train, valid, test), strict=True):
            images = image_ids(seed, split, count)
            job = partial(_write_image, staging, seed, short_side)
            rows = run(job, images)
            bar = tqdm(rows, split, count, unit="image", disable=not progress)
            _write_split(staging, split, list(bar))


@contextmanager
def _mapping(workers: int) -> Iterator[Callable[..., Iterable[dict[str, Any]]]]:
    """Yield `map`, or that of one pool of processes for all splits: to start one takes seconds."""
    if workers == 0:
        yield map
        return
    # Spawn, not fork: the caller may run threads, such as JAX's.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=16)


def _write_image(root: Path, seed: int, short_side: int, image: ImageId) -> dict[str, Any]:
    phantom = make_phantom(seed, image, short_side)
    path = root / image.path
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(phantom.pixels).save(path, quality=90)
    row = {
        "Path": image.path,
        "Sex": phantom.sex,
        "Age": phantom.age,
        "Frontal/Lateral": "Lateral" if image.lateral else "Frontal",
        "AP/PA": phantom.projection,
    }
    for name in CSV_OBSERVATIONS:
        value = phantom.labels[canonical(name)]
        row[name] = "" if value is None else value
    size = list(phantom.pixels.shape)
    record: dict[str, Any] = {"image_id": image.image_id, "row": row}
    if image.split == "train":
        record["truth"] = _rles(phantom.truth, size)
    else:
        record["expert"] = _rles(phantom.expert, size)
        record["contours"] = {"img_size": size, **phantom.expert}
        record["second"] = _rles(phantom.second, size)
    record["has_masks"] = bool(phantom.truth)
    return record


def _rles(contours: Contours, size: list[int]) -> dict[str, dict[str, Any]]:
    return {
        name: encode_rle(fill_polygons(contours.get(name, ()), size[0], size[1]))
        for name in PATHOLOGIES
    }


def _write_split(root: Path, split: str, records: list[dict[str, Any]]) -> None:
    with (root / CHEXPERT / f"{split}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(record["row"] for record in records)
    annotated = [record for record in records if record["has_masks"]]
    masks = root / "CheXlocalize"
    if split == "train":
        _write_json(root / "extra" / "gt_segmentations_train_hidden.json", annotated, "truth")
        return
    short = "val" if split == "valid" else split
    _write_json(masks / f"gt_segmentations_{short}.json", annotated, "expert")
    _write_json(masks / f"gt_annotations_{short}.json", annotated, "contours")
    if split == "test":
        _write_json(masks / "hb_segmentations_test.json", annotated, "second")


def _write_json(path: Path, records: Iterable[dict[str, Any]], key: str) -> None:
    path.write_text(json.dumps({record["image_id"]: record[key] for record in records}))
