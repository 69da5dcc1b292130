"""CheXpert's images and image-level labels as a TFDS data set.

TFDS ships a builder named `chexpert` that renumbers the labels, drops their names, decodes grey as three
channels and accepts truncated files; this one is registered as `chexpert_weak`, as its labels are weak.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from chexseg_jax.pathologies import OBSERVATIONS
from datasets.chexpert.csv_table import PROJECTIONS, SEXES, VIEWS
from datasets.chexpert.images import GrayJpeg, ListedImage, find_images, read_gray_jpeg
from datasets.chexpert.layout import find_tables
from datasets.tfds_builder import Example, ShardedBuilder


class ChexpertWeak(ShardedBuilder):
    """Chest X-rays with fourteen observations: 1 present, 0 absent, -1 uncertain, -2 not mentioned."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Request CheXpert from Stanford AIMI, unpack it, and give its folder as manual_dir.
    """

    def find_items(self, raw: Path) -> Mapping[str, Sequence[ListedImage]]:
        """Find the images of every split present."""
        tables = find_tables(raw)
        return find_images(tables, raw, tables, progress=self.progress)

    @staticmethod
    def make_features() -> tfds.features.FeaturesDict:
        """Describe an image and its labels."""
        return tfds.features.FeaturesDict(image_features())

    @staticmethod
    def make_example(item: ListedImage) -> Example:
        """Read one image and its labels."""
        return image_example(item, read_gray_jpeg(item))


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
