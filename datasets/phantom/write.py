"""Writes phantoms to disk as CheXpert and CheXlocalize lay themselves out."""

import csv
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from PIL import Image
from tqdm import tqdm

from chexseg_jax.masks import encode_rle, fill_polygons
from chexseg_jax.pathologies import PATHOLOGIES, canonical
from datasets.phantom.annotators import Contours
from datasets.phantom.labels import CSV_OBSERVATIONS
from datasets.phantom.study import SPLITS, FilmId, film_ids, make_film

CHEXPERT: Final = "CheXpert-v1.0-small"
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
    """Writes synthetic chests, labels and masks below `root`, which appears only when all is written.

    Every image depends on the seed and its own place in its split and on nothing else: not on the
    number of images, nor on the number of processes.

    Args:
        root: the folder to make.
        seed: of everything.
        train: images with the labels of reports, mistakes included.
        valid: images with true labels and an expert's masks.
        test: the same, with a second reader's masks.
        short_side: of the images, in pixels.
        workers: processes; 0 is this one.
        progress: whether to show bars.

    Raises:
        FileExistsError: `root` is there already.
    """
    if root.exists():
        raise FileExistsError(f"{root} exists; remove it, or write the phantoms somewhere else")
    root.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        aside.chmod(0o755)
        (aside / "CheXlocalize").mkdir()
        (aside / "extra").mkdir()
        for split, count in zip(SPLITS, (train, valid, test), strict=True):
            films = film_ids(seed, split, count)
            job = partial(_write_film, aside, seed, short_side)
            rows = _run(job, films, workers)
            bar = tqdm(rows, split, count, unit="image", disable=not progress)
            _write_split(aside, split, list(bar))
        aside.rename(root)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _run(
    job: Callable[[FilmId], dict[str, Any]], films: list[FilmId], workers: int
) -> Iterator[dict[str, Any]]:
    if workers == 0:
        yield from map(job, films)
        return
    # Not forked: the caller may run threads, JAX's among them.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(job, films, chunksize=16)


def _write_film(root: Path, seed: int, short_side: int, film_id: FilmId) -> dict[str, Any]:
    film = make_film(seed, film_id, short_side)
    path = root / film_id.path
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(film.pixels).save(path, quality=90)
    row = {
        "Path": film_id.path,
        "Sex": film.sex,
        "Age": film.age,
        "Frontal/Lateral": "Lateral" if film_id.lateral else "Frontal",
        "AP/PA": film.projection,
    }
    for name in CSV_OBSERVATIONS:
        value = film.labels[canonical(name)]
        row[name] = "" if value is None else value
    size = list(film.pixels.shape)
    record: dict[str, Any] = {"image_id": film_id.image_id, "row": row}
    if film_id.split == "train":
        record["truth"] = _rles(film.truth, size)
    else:
        record["expert"] = _rles(film.expert, size)
        record["contours"] = {"img_size": size, **film.expert}
        record["second"] = _rles(film.second, size)
    record["ill"] = bool(film.truth)
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
    ill = [record for record in records if record["ill"]]
    masks = root / "CheXlocalize"
    if split == "train":
        _write_json(root / "extra" / "gt_segmentations_train_hidden.json", ill, "truth")
        return
    short = "val" if split == "valid" else split
    _write_json(masks / f"gt_segmentations_{short}.json", ill, "expert")
    _write_json(masks / f"gt_annotations_{short}.json", ill, "contours")
    if split == "test":
        _write_json(masks / "hb_segmentations_test.json", ill, "second")


def _write_json(path: Path, records: Iterable[dict[str, Any]], key: str) -> None:
    path.write_text(json.dumps({record["image_id"]: record[key] for record in records}))
