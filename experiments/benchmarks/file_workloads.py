"""What begins with files: reading images for a training, and maps, seeds and masks from end to end."""

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
from chexseg_jax.pathologies import OBSERVATIONS
from chexseg_jax.runtime.cpu import compute_dtype
from chexseg_jax.runtime.stage_folder import Records, StageFolder, open_stage_folder
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
from experiments.benchmarks.measurements import Measurement, measured
from experiments.benchmarks.timing import Times, summary
from experiments.benchmarks.workloads import Scale

CHEXPERT_IMAGES: Final = 191_027
"""The frontal images of CheXpert's training set, for which CheXseg makes pseudo-masks."""


@contextmanager
def films(scale: Scale) -> Iterator[Source]:
    """Gives prepared images, as large as CheXpert-v1.0-small's, of synthetic chests."""
    with TemporaryDirectory() as folder:
        raw, data_dir = Path(folder) / "raw", Path(folder) / "data"
        sizes = {"train": scale.films, "valid": 1, "test": 1, "short_side": scale.image_size}
        write_phantoms(raw, seed=0, progress=False, **sizes)
        prepare("chexpert", raw, data_dir)
        yield open_source(data_dir, "chexpert", "train")


def loading(scale: Scale, source: Source, repeats: int, seconds: float) -> Iterator[Measurement]:
    """Gives the rate at which batches are read: by one core, and by all as a training reads."""
    images = scale.batches["loader"]
    batches = max(1, scale.loaded // images)
    dataset = process_batches(shuffled_repeated(letterboxed(source, scale.image_size), 0), images)
    ways = {
        "one core": ReadOptions(num_threads=0, prefetch_buffer_size=0),
        f"{READ.num_threads} threads, as in a training": READ,
    }
    for name, options in ways.items():
        samples: list[float] = []
        began = time.perf_counter()
        while len(samples) < repeats and time.perf_counter() - began < seconds / len(ways):
            stream, start = iter(dataset.to_iter_dataset(options)), time.perf_counter()
            for _ in range(batches):
                next(stream)
            samples.append((time.perf_counter() - start) / batches)
        title = f"JPEG to batches of {scale.image_size} px, {name}"
        yield measured("loader", title, images, summary(samples))


def whole(scale: Scale, source: Source) -> Iterator[Measurement]:
    """Gives the rate of localize, seed and label, files read and written, with all findings positive.

    Two runs of different length are compared, so that what a run costs once, compiling above all, is
    told from what an image costs. CheXpert's images are then that many times one image.
    """
    classifier = build_backbone(scale.classifier, len(OBSERVATIONS), jax.random.key(0))
    irnet = IRNet(classifier, rngs=nnx.Rngs(0), dtype=compute_dtype())
    few, many = scale.whole
    _end_to_end(scale, source, few, classifier, irnet)  # compiles what is kept between runs
    short, long = (_end_to_end(scale, source, n, classifier, irnet) for n in (few, many))
    # On a busy machine the longer run may take no longer: then all its time is the images'.
    rate = (long - short) / (many - few) if long > short else long / many
    once = max(long - rate * many, 0.0)
    minutes = (once + rate * CHEXPERT_IMAGES) / 60
    images = scale.batches["whole"]
    note = (
        f"{many} images took {long:.1f} s, {few} took {short:.1f} s; {CHEXPERT_IMAGES:,} would take "
        f"{minutes:,.1f} minutes (extrapolated)"
    )
    title = f"maps, seeds, walk, run lengths, {scale.image_size} px, from file to file"
    seconds = rate * images
    yield measured("whole", title, images, Times(seconds, seconds, seconds, 1), note=note)


def _end_to_end(scale: Scale, source: Source, images: int, classifier: Any, irnet: Any) -> float:
    """Returns the seconds that three stages take together."""
    positive = np.ones(len(OBSERVATIONS), np.int8)
    repeated = Subset(source, np.resize(np.arange(len(source)), images))
    chests = Mapped(repeated, lambda _, example: {**example, "labels": positive})
    size, batch = scale.image_size, scale.batches["whole"]
    with TemporaryDirectory() as workdir:

        def folder(stage: str) -> StageFolder:
            return open_stage_folder(Path(workdir), stage, 1, {}, {"images": chests.fingerprint})

        began = time.perf_counter()
        shared: dict[str, Any] = {"images": chests, "size": size}
        cams = folder("localize")
        cams_stage.run(
            cams_stage.CamsConfig(batch),
            classifier=classifier,
            normalise=IMAGENET,
            folder=cams,
            **shared,
        )
        maps = Records(cams, "cams")
        seeds_stage.run(
            seeds_stage.SeedsConfig(batch_size=batch), cams=maps, folder=folder("seed"), **shared
        )
        pseudo_masks_stage.run(
            pseudo_masks_stage.PseudoMasksConfig(batch_size=batch),
            irnet=irnet,
            normalise=IMAGENET,
            cams=maps,
            folder=folder("label"),
            **shared,
        )
        return time.perf_counter() - began
