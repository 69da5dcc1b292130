"""What holds no weights against the references: paths, walk, CRF, heat maps, run lengths, scores."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chexseg_jax.evaluation.chexlocalize import write_per_image, write_summary
from chexseg_jax.evaluation.metrics import iou_per_image, per_image_intervals
from chexseg_jax.masks import decode_rle, encode_rle, pack_rles, unpack
from chexseg_jax.pseudolabels.affinity import paths
from chexseg_jax.pseudolabels.crf import CrfConfig, refine
from chexseg_jax.pseudolabels.random_walk import random_walk
from chexseg_jax.pseudolabels.thresholds import grey_levels, heatmap_to_mask, otsu
from experiments.parity_checks.fixtures import Arrays, Line, compare, failure, same

CRF = 0.01
"""The share of pixels whose label may differ."""


def path_index(path: Path) -> Iterator[Line]:
    """Compares the neighbours of each radius and the paths to them, in order."""
    for radius, reference in json.loads(path.read_text()).items():
        ours = [[list(point) for point in way] for way in paths(int(radius))]
        lists: dict[str, list[Any]] = {
            "destinations_dy_dx": [way[0] for way in ours],
            "paths": ours,
        }
        for name in sorted(lists.keys() | reference.keys()):
            if name not in lists or name not in reference:
                yield failure(f"{radius}/{name}", "only one side has it")
                continue
            wrong = sum(a != b for a, b in zip(lists[name], reference[name], strict=False))
            wrong += abs(len(lists[name]) - len(reference[name]))
            yield Line(f"{radius}/{name}", wrong, 0.0, f"of {len(reference[name])}")


def walks(arrays: Arrays) -> Iterator[Line]:
    """Compares random walks, whose maps lie on [0, 1]: the tolerance is absolute.

    Most of the difference after many steps is the reference's, which squares a float32 matrix.
    """
    for case in arrays.cases():
        radius, beta, doublings = arrays[f"{case}/params_radius_beta_exptimes"].tolist()
        maps = jnp.asarray(np.moveaxis(arrays[f"{case}/cam"], 0, -1))[None]
        walked = random_walk(
            maps,
            jnp.asarray(arrays[f"{case}/edge"])[None],
            radius=int(radius),
            beta=float(beta),
            steps=2 ** int(doublings),
        )
        tolerance = 1e-5 if doublings <= 3 else 1e-4
        ours = np.moveaxis(np.asarray(walked[0]), -1, 0)
        note = f"radius {radius}, beta {beta}, {2**doublings} steps"
        line = compare(f"{case}/walked", ours, arrays[f"{case}/walked"], tolerance, scale=1.0)
        yield replace(line, note=line.note or note)


def crfs(arrays: Arrays) -> Iterator[Line]:
    """Compares mean-field labels after so many iterations with such a confidence."""
    for case, names in arrays.cases().items():
        image, label = arrays[f"{case}/image"], arrays[f"{case}/label"]
        grey = image[..., :1]
        if (image != grey).any():
            raise ValueError(f"case {case} is no grey image, which is all that our CRF reads")
        for name in names:
            settings = re.fullmatch(r"t(\d+)_p([\d.]+)", name)
            if settings is None:
                continue
            config = CrfConfig(iterations=int(settings[1]), confidence=float(settings[2]))
            found = jax.jit(refine, static_argnums=2)(
                jnp.asarray(label != 0)[None, ..., None], jnp.asarray(grey)[None], config
            )
            reference = arrays[f"{case}/{name}"].argmax(0)
            drawn = np.asarray(found[0, ..., 0]) > 0.5
            apart = float(((reference != 0) != drawn).mean())
            yield Line(f"{case}/{name}", apart, CRF, "share of pixels with another label")


def heatmaps(arrays: Arrays) -> Iterator[Line]:
    """Compares masks made from heat maps at Otsu's threshold and at given ones."""
    maps = arrays["heatmaps"]
    height, width = maps.shape[1:]
    yield same("otsu_value", [otsu(grey_levels(one)) for one in maps], arrays["otsu_value"], "maps")
    masks = np.stack([heatmap_to_mask(one, height, width) for one in maps])
    yield same("otsu", masks, arrays["otsu"] != 0, "pixels")
    for name in arrays.under("threshold_"):
        cut = float(name.replace("_", "."))
        masks = np.stack([heatmap_to_mask(one, height, width, cut) for one in maps])
        yield same(f"threshold_{name}", masks, arrays[f"threshold_{name}"] != 0, "pixels")


EVALUATION = (
    "gt_segmentations.json",
    "pred_segmentations.json",
    *(
        f"true_pos_only_{only}/{name}.csv"
        for only in (False, True)
        for name in ("iou_results_per_cxr", "iou_summary_results")
    ),
)
"""The files of an evaluation as CheXlocalize leaves them."""


def evaluation(folder: Path) -> Iterator[Line]:
    """Compares CheXlocalize's run lengths and the tables it wrote, to every printed digit."""
    truths, drawn = (json.loads((folder / name).read_text()) for name in EVALUATION[:2])
    for name, images in zip(EVALUATION[:2], (truths, drawn), strict=True):
        masks = [rle for image in images.values() for rle in image.values()]
        wrong = sum(encode_rle(decode_rle(rle)) != rle for rle in masks)
        yield Line(name, wrong, 0.0, f"of {len(masks)} masks, decoded and encoded again")
    for only in (False, True):
        where = folder / f"true_pos_only_{only}"
        with TemporaryDirectory() as made:
            yield from tables(where, Path(made), truths, drawn, true_pos_only=only)


def tables(
    where: Path, made: Path, truths: Any, drawn: Any, *, true_pos_only: bool
) -> Iterator[Line]:
    """Writes our tables in the reference's order of images, on which its bootstrap depends."""
    image_ids = [row[-1] for row in rows(where / "iou_results_per_cxr.csv")[1:]]
    expected = truths.keys() if true_pos_only else truths.keys() | drawn.keys()
    odd = set(image_ids) ^ set(expected)
    name = f"{where.name}/img_id"
    yield Line(name, len(odd) + len(image_ids) - len(set(image_ids)), 0.0, "images")
    values = []
    for image_id in image_ids:
        pair = [drawn.get(image_id), truths.get(image_id)]
        shown = [None if rles is None else unpack(pack_rles(rles)) != 0 for rles in pair]
        there = next(masks for masks in shown if masks is not None)
        mask, truth = (np.zeros_like(there) if masks is None else masks for masks in shown)
        values.append(iou_per_image(truth, mask, true_pos_only=true_pos_only))
    write_per_image(made / "iou_results_per_cxr.csv", image_ids, np.stack(values))
    write_summary(made / "iou_summary_results.csv", per_image_intervals(np.stack(values)))
    for file in sorted(path.name for path in made.iterdir()):
        ours, reference = rows(made / file), rows(where / file)
        if [len(row) for row in ours] != [len(row) for row in reference]:
            yield failure(f"{where.name}/{file}", "the tables have other rows or columns")
        else:
            yield same(f"{where.name}/{file}", ours, reference, "cells")


def rows(path: Path) -> list[list[str]]:
    """Returns the cells of a table."""
    with path.open(newline="") as file:
        return list(csv.reader(file))
