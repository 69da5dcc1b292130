"""Compare everything without weights: paths, random walk, CRF, heatmaps, run lengths, scores."""

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

from chexseg_jax.evaluation.chexlocalize import (
    Segmentations,
    measure_areas,
    write_per_image,
    write_summary,
)
from chexseg_jax.evaluation.metrics import per_image_intervals
from chexseg_jax.masks import decode_rle, encode_rle
from chexseg_jax.pseudolabels.affinity import paths
from chexseg_jax.pseudolabels.crf import CrfConfig, refine
from chexseg_jax.pseudolabels.random_walk import random_walk
from chexseg_jax.pseudolabels.thresholds import grey_levels, heatmap_to_mask, otsu
from experiments.parity_checks.fixtures import (
    Comparison,
    ReferenceArrays,
    compare_exactly,
    compare_values,
    failure,
)

CRF_TOLERANCE = 0.01
"""The fraction of pixels whose label may differ."""


def compare_paths(path: Path) -> Iterator[Comparison]:
    """Compare the neighbours of each radius and the paths to them, in order."""
    for radius, reference in json.loads(path.read_text()).items():
        ours = [[list(point) for point in path] for path in paths(int(radius))]
        lists: dict[str, list[Any]] = {
            "destinations_dy_dx": [path[0] for path in ours],
            "paths": ours,
        }
        for name in sorted(lists.keys() | reference.keys()):
            if name not in lists or name not in reference:
                yield failure(f"{radius}/{name}", "only one side has it")
                continue
            wrong = sum(a != b for a, b in zip(lists[name], reference[name], strict=False))
            wrong += abs(len(lists[name]) - len(reference[name]))
            yield Comparison(f"{radius}/{name}", wrong, 0.0, f"of {len(reference[name])}")


def compare_walks(arrays: ReferenceArrays) -> Iterator[Comparison]:
    """Compare random walks; maps lie on [0, 1], so the tolerance is absolute.

    After many steps most of the difference is the reference's, which squares a float32 matrix.
    """
    for case in arrays.cases():
        radius, beta, doublings = arrays[f"{case}/params_radius_beta_exptimes"].tolist()
        walked = random_walk(
            jnp.asarray(np.moveaxis(arrays[f"{case}/cam"], 0, -1))[None],
            jnp.asarray(arrays[f"{case}/edge"])[None],
            radius=int(radius),
            beta=float(beta),
            steps=2 ** int(doublings),
        )
        tolerance = 1e-5 if doublings <= 3 else 1e-4
        ours, reference = np.moveaxis(np.asarray(walked[0]), -1, 0), arrays[f"{case}/walked"]
        note = f"radius {radius}, beta {beta}, {2**doublings} steps"
        comparison = compare_values(f"{case}/walked", ours, reference, tolerance, scale=1.0)
        yield replace(comparison, note=comparison.note or note)


def compare_crfs(arrays: ReferenceArrays) -> Iterator[Comparison]:
    """Compare mean-field labels; `t10_p0.7` holds those of 10 iterations at confidence 0.7."""
    for case, names in arrays.cases().items():
        image, label = arrays[f"{case}/image"], arrays[f"{case}/label"]
        gray = image[..., :1]
        if (image != gray).any():
            raise ValueError(f"case {case} is no grey image, which is all that our CRF reads")
        for name in names:
            settings = re.fullmatch(r"t(\d+)_p([\d.]+)", name)
            if settings is None:
                continue
            config = CrfConfig(iterations=int(settings[1]), confidence=float(settings[2]))
            probs = jax.jit(refine, static_argnums=2)(
                jnp.asarray(label != 0)[None, ..., None], jnp.asarray(gray)[None], config
            )
            reference = arrays[f"{case}/{name}"].argmax(0)
            ours = np.asarray(probs[0, ..., 0]) > 0.5
            fraction = float(((reference != 0) != ours).mean())
            note = "share of pixels with another label"
            yield Comparison(f"{case}/{name}", fraction, CRF_TOLERANCE, note)


def compare_heatmaps(arrays: ReferenceArrays) -> Iterator[Comparison]:
    """Compare masks made from heatmaps, at Otsu's threshold and at given ones."""
    heatmaps = arrays["heatmaps"]
    height, width = heatmaps.shape[1:]
    levels = [otsu(grey_levels(heatmap)) for heatmap in heatmaps]
    yield compare_exactly("otsu_value", levels, arrays["otsu_value"], "maps")
    thresholds = {"otsu": None} | {
        f"threshold_{name}": float(name.replace("_", ".")) for name in arrays.suffixes("threshold_")
    }
    for name, threshold in thresholds.items():
        masks = [heatmap_to_mask(heatmap, height, width, threshold) for heatmap in heatmaps]
        yield compare_exactly(name, masks, arrays[name] != 0, "pixels")


SEGMENTATIONS = ("gt_segmentations.json", "pred_segmentations.json")
EVALUATION = (
    *SEGMENTATIONS,
    *(
        f"true_pos_only_{only}/{name}.csv"
        for only in (False, True)
        for name in ("iou_results_per_cxr", "iou_summary_results")
    ),
)
"""The files of an evaluation as CheXlocalize writes them."""


def compare_evaluation(folder: Path) -> Iterator[Comparison]:
    """Compare CheXlocalize's run lengths and its tables, to every printed digit."""
    targets, predictions = (Segmentations.read(folder / name) for name in SEGMENTATIONS)
    for name, file in zip(SEGMENTATIONS, (targets, predictions), strict=True):
        rles = [rle for image in file.images.values() for rle in image.values()]
        wrong = sum(encode_rle(decode_rle(rle)) != rle for rle in rles)
        yield Comparison(name, wrong, 0.0, f"of {len(rles)} masks, decoded and encoded again")
    for only in (False, True):
        reference = folder / f"true_pos_only_{only}"
        with TemporaryDirectory() as ours:
            yield from compare_tables(
                reference, Path(ours), targets, predictions, true_pos_only=only
            )


def compare_tables(
    reference: Path,
    ours: Path,
    targets: Segmentations,
    predictions: Segmentations,
    *,
    true_pos_only: bool,
) -> Iterator[Comparison]:
    """Write our tables in the reference's order of images, which its bootstrap depends on; compare."""
    image_ids = [row[-1] for row in read_cells(reference / "iou_results_per_cxr.csv")[1:]]
    expected = {*targets.images, *(() if true_pos_only else predictions.images)}
    wrong = len(set(image_ids) ^ expected) + len(image_ids) - len(set(image_ids))
    yield Comparison(f"{reference.name}/img_id", wrong, 0.0, "images")
    areas = measure_areas(targets, predictions, image_ids, reference.name)
    ious = areas.ious(true_pos_only=true_pos_only)
    write_per_image(ours / "iou_results_per_cxr.csv", image_ids, ious)
    write_summary(ours / "iou_summary_results.csv", per_image_intervals(ious))
    for file in sorted(path.name for path in ours.iterdir()):
        name = f"{reference.name}/{file}"
        a, b = read_cells(ours / file), read_cells(reference / file)
        if [len(row) for row in a] != [len(row) for row in b]:
            yield failure(name, "the tables have other rows or columns")
        else:
            yield compare_exactly(name, a, b, "cells")


def read_cells(path: Path) -> list[list[str]]:
    """Read the cells of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.reader(file))
