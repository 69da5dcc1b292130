"""Benchmarks that read files: the training data loader, and CAMs, seeds and pseudo-masks end to end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import jax
import numpy as np
from flax import nnx
from grain.python import ReadOptions

from chexseg_jax.images import IMAGENET
from chexseg_jax.models.irnet import IRNet
from chexseg_jax.models.spec import build_backbone
from chexseg_jax.pathologies import OBSERVATIONS, PATHOLOGIES
from chexseg_jax.runtime.cpu import compute_dtype
from chexseg_jax.runtime.stage_folder import RecordReader, StageFolder, open_stage_folder
from chexseg_jax.stages import cams as cams_stage
from chexseg_jax.stages import pseudo_masks as pseudo_masks_stage
from chexseg_jax.stages import seeds as seeds_stage
from chexseg_jax.training.data import (
    READ,
    Mapped,
    Source,
    Subset,
    letterboxed,
    process_batches,
    shuffled_repeated,
)
from datasets.phantom import write_phantoms
from datasets.prepare import prepare
from datasets.source import open_source
from experiments.benchmarks.table import Measurement, measurement_of
from experiments.benchmarks.timing import Times
from experiments.benchmarks.workloads import Scale

CHEXPERT_IMAGES: Final = 191_027
"""The frontal images of CheXpert's training set, for which CheXseg makes pseudo-masks."""


@contextmanager
def phantom_images(scale: Scale) -> Iterator[Source]:
    """Prepare a temporary data set of synthetic chests, as large as CheXpert-v1.0-small's images."""
    with TemporaryDirectory() as folder:
        raw, data_dir = Path(folder) / "raw", Path(folder) / "data"
        sizes = {"train": scale.phantoms, "valid": 1, "test": 1, "short_side": scale.image_size}
        write_phantoms(raw, seed=0, progress=False, **sizes)
        prepare("chexpert", raw, data_dir)
        yield open_source(data_dir, "chexpert", "train")


def measure_loader(
    scale: Scale, source: Source, repeats: int, seconds: float
) -> Iterator[Measurement]:
    """Measure how fast batches are read, by one core and by the threads of a training."""
    images = scale.batches["loader"]
    batches = max(1, scale.loader_images // images)
    dataset = process_batches(shuffled_repeated(letterboxed(source, scale.image_size), 0), images)
    modes = {
        "one core": ReadOptions(num_threads=0, prefetch_buffer_size=0),
        f"{READ.num_threads} threads, as in a training": READ,
    }
    for name, options in modes.items():
        samples: list[float] = []
        began = time.perf_counter()
        while len(samples) < repeats and time.perf_counter() - began < seconds / len(modes):
            stream, started = iter(dataset.to_iter_dataset(options)), time.perf_counter()
            for _ in range(batches):
                next(stream)
            samples.append((time.perf_counter() - started) / batches)
        title = f"JPEG to batches of {scale.image_size} px, {name}"
        yield measurement_of("loader", title, images, Times.of(samples))


def measure_end_to_end(scale: Scale, source: Source) -> Iterator[Measurement]:
    """Measure CAMs, seeds and pseudo-masks, from file to file, with all findings positive.

    The difference of a short and a long run separates the time of an image from that of a run, which is
    mostly compilation. The time for CheXpert is extrapolated from both.
    """
    classifier = build_backbone(scale.classifier, len(OBSERVATIONS), jax.random.key(0))
    irnet = IRNet(classifier, rngs=nnx.Rngs(0), dtype=compute_dtype())
    few, many = scale.end_to_end_images
    _run_stages(scale, source, few, classifier, irnet)  # compiles what the runs share
    short, long = (_run_stages(scale, source, n, classifier, irnet) for n in (few, many))
    # On a busy machine the long run may take no longer: then all its time is attributed to the images.
    per_image = (long - short) / (many - few) if long > short else long / many
    per_run = max(long - per_image * many, 0.0)
    minutes = (per_run + per_image * CHEXPERT_IMAGES) / 60
    images = scale.batches["end_to_end"]
    note = (
        f"{many} images took {long:.1f} s, {few} took {short:.1f} s; {CHEXPERT_IMAGES:,} would take "
        f"{minutes:,.1f} minutes (extrapolated)"
    )
    title = f"maps, seeds, walk, run lengths, {scale.image_size} px, from file to file"
    yield measurement_of("end_to_end", title, images, Times.of([per_image * images]), note=note)


def _run_stages(scale: Scale, source: Source, count: int, classifier: Any, irnet: Any) -> float:
    """Run three stages on `count` images and return their seconds."""
    positive = np.ones(len(OBSERVATIONS), np.int8)
    repeated = Subset(source, np.resize(np.arange(len(source)), count))
    images = Mapped(repeated, lambda _, example: {**example, "labels": positive})
    batch = scale.batches["end_to_end"]
    shared: dict[str, Any] = {"images": images, "image_size": scale.image_size}
    with TemporaryDirectory() as workdir:

        def open_folder(stage: str) -> StageFolder:
            inputs = {"images": images.fingerprint}
            return open_stage_folder(Path(workdir), stage, 1, {}, inputs)

        started = time.perf_counter()
        cams_folder = open_folder("cams")
        cams_stage.run(
            cams_stage.CamsConfig(batch_size=batch),
            classifier=classifier,
            normalization=IMAGENET,
            folder=cams_folder,
            **shared,
        )
        cams = RecordReader(cams_folder, "cams")
        seeds_config = seeds_stage.SeedsConfig(batch_size=batch)
        seeds_stage.run(seeds_config, cams=cams, folder=open_folder("seeds"), **shared)
        config = pseudo_masks_stage.PseudoMasksConfig(batch_size=batch)
        pseudo_masks_stage.run(
            config,
            maps=pseudo_masks_stage.walked_maps(config, irnet, IMAGENET),
            thresholds=np.full(len(PATHOLOGIES), config.threshold),
            soft=False,
            cams=cams,
            folder=open_folder("pseudo_masks"),
            **shared,
        )
        return time.perf_counter() - started
