"""CheXpert's images and image-level labels as a TFDS data set.

TFDS ships a builder named `chexpert` that renumbers the labels, drops their names, decodes grey as three
channels and accepts truncated files; this one is registered as `chexpert_weak`, as its labels are weak.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from chexseg_jax.pathologies import OBSERVATIONS
from datasets.chexpert.images import GrayJpeg, ListedImage, find_images, read_gray_jpeg
from datasets.chexpert.layout import find_tables
from datasets.csv_cells import PROJECTIONS, SEXES, VIEWS
from datasets.errors import Faults
from datasets.tfds_builder import Example, ShardedBuilder


class ChexpertWeak(ShardedBuilder):
    """Chest X-rays with fourteen observations: 1 present, 0 absent, -1 uncertain, -2 not mentioned."""

    VERSION = tfds.core.Version("1.0.0")

    @staticmethod
    def make_features() -> tfds.features.FeaturesDict:
        """Describe an image and its labels."""
        return tfds.features.FeaturesDict(image_features())

    @staticmethod
    def make_example(item: ListedImage) -> Example:
        """Read one image and its labels."""
        return image_example(item, read_gray_jpeg(item))


def find_labelled(
    raw: Path, faults: Faults, *, labels: str | None = None, progress: bool = True
) -> dict[str, list[ListedImage]]:
    """Find the images of every split present in a download; see `find_tables`."""
    tables = find_tables(raw, labels=labels)
    return find_images(tables, raw, tables, faults, progress=progress)


def image_features() -> dict[str, Any]:
    """Describe the features that both data sets share."""
    return {
        "image": tfds.features.Image(shape=(None, None, 1), encoding_format="jpeg"),
        "image_id": tfds.features.Text(),
        "patient": tfds.features.Text(),
        "study": tfds.features.Text(),
        "view": tfds.features.ClassLabel(names=VIEWS),
        "sex": tfds.features.ClassLabel(names=SEXES),
        "age": tfds.features.Scalar(np.int16),
        "projection": tfds.features.ClassLabel(names=PROJECTIONS),
        "labels": {name: tfds.features.Scalar(np.int8) for name in OBSERVATIONS},
    }


def image_example(listed: ListedImage, jpeg: GrayJpeg) -> Example:
    """Build the part of an example that both data sets share."""
    row = listed.row
    return {
        "image": jpeg.data,
        "image_id": row.image_id,
        "patient": row.patient,
        "study": row.study,
        "view": row.view,
        "sex": row.sex,
        "age": row.age,
        "projection": row.projection,
        "labels": dict(zip(OBSERVATIONS, row.labels, strict=True)),
    }
