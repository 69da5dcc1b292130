"""Masks for a folder of X-rays: `python -m experiments.predict --model DIR --images PATH --out OUT`.

`--model` is a folder of `experiments.export`; `--images` takes files, folders and globs of JPEG, PNG and
DICOM files. Writes to `--out`:

    pred_segmentations.json   CheXlocalize's run lengths at native size, for `experiments.evaluate` too
    findings.csv              greatest and mean probability, and area, of every finding of every image
    overlays/                 what was drawn, a PNG an image
    report.html               the first images, to look through
    failed.csv                files that could not be used, and why

`--maps` adds probability maps (16-bit PNG, the letterbox), `--dicom-seg` a DICOM Segmentation for every
DICOM file in which something is drawn. Stopped anywhere, the same command goes on. Exit codes: 0, all is
done; 2, nothing could be started; 3, some files were left out. Not a medical device.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float, UInt8
from tqdm import tqdm

from chexseg_jax.images import letterbox
from chexseg_jax.inference.export import ExportedNetwork, ExportError, load_segmenter
from chexseg_jax.radiographs.radiograph import Radiograph, RadiographError
from chexseg_jax.radiographs.read import read_radiograph
from chexseg_jax.runtime.cpu import keep_memory
from datasets.errors import DataError
from experiments.prediction.inputs import InputFile, find_inputs
from experiments.prediction.outputs import write_outputs
from experiments.prediction.progress import ProgressJournal
from experiments.prediction.rendering import RenderOptions, render_result
from experiments.run.cli import errors_to_exit_code_2


@dataclass(frozen=True)
class Config:
    """Segments X-rays."""

    model: Path
    """A folder of `experiments.export`."""
    images: tuple[str, ...]
    """Files, folders (searched to the bottom) and globs."""
    out: Path
    """Where the results go; what is done already is not done again."""
    batch_size: int = 32
    """X-rays at once, over all devices of this machine."""
    threads: int = 8
    """X-rays read, and drawn, at once."""
    overlays: bool = True
    """Draw every X-ray with its masks: worth most of the time that a small network takes."""
    maps: bool = False
    """Keep probability maps, a 16-bit PNG a finding."""
    dicom_seg: bool = False
    """Write a DICOM Segmentation beside each result that comes from DICOM."""
    shown: int = 60
    """How many X-rays the page shows."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.threads < 1:
            raise ValueError("--batch-size and --threads must be 1 or more")


Frame = UInt8[np.ndarray, "s s 1"]


def read(path: Path, side: int) -> tuple[Radiograph, Frame]:
    """Returns a radiograph and its letterbox."""
    radiograph = read_radiograph(path)
    return radiograph, letterbox(radiograph.image, side)


def ahead(
    pool: ThreadPoolExecutor, tasks: list[InputFile], side: int, depth: int
) -> Iterator[tuple[InputFile, Future[tuple[Radiograph, Frame]]]]:
    """Gives tasks with their files being read, `depth` of them before they are wanted."""
    waiting = iter(tasks)
    queue = [(task, pool.submit(read, task.path, side)) for task in islice(waiting, depth)]
    while queue:
        yield queue.pop(0)
        queue += [(task, pool.submit(read, task.path, side)) for task in islice(waiting, 1)]


def predict(
    config: Config, segmenter: ExportedNetwork, tasks: list[InputFile], journal: ProgressJournal
) -> None:
    """Does every task and notes what came of it, a batch at a time."""
    batch, side, thresholds = config.batch_size, segmenter.image_size, segmenter.thresholds
    kept = RenderOptions(
        config.out,
        thresholds,
        overlays=config.overlays,
        maps=config.maps,
        dicom_seg=config.dicom_seg,
        fingerprint=journal.fingerprint,
    )
    bar = tqdm(total=len(tasks), desc="predict", unit=" images")
    # Two pools: were they one, reading ahead could keep drawing from ever being done.
    with ThreadPoolExecutor(config.threads) as readers, ThreadPoolExecutor(config.threads) as pens:
        coming = ahead(readers, tasks, side, 2 * batch)
        while some := list(islice(coming, batch)):
            ready: list[tuple[InputFile, Radiograph, Frame]] = []
            for task, reading in some:
                try:
                    ready.append((task, *reading.result()))
                except RadiographError as error:
                    journal.failed(task, str(error))
                    bar.update()
            if not ready:
                continue
            frames = np.zeros((batch, side, side, 1), np.uint8)  # one shape, compiled once
            frames[: len(ready)] = [frame for *_, frame in ready]
            maps: Float[np.ndarray, "b s s k"] = segmenter(frames)
            jobs = [
                pens.submit(render_result, kept, task, radiograph, maps[i])
                for i, (task, radiograph, _) in enumerate(ready)
            ]
            for (task, *_), job in zip(ready, jobs, strict=True):
                try:
                    journal.done(task, job.result())
                except RadiographError as error:
                    journal.failed(task, str(error))
                bar.update()
            journal.flush()
    bar.close()


def run(config: Config) -> int:
    """Predicts what is missing, writes the outputs, and returns the exit code."""
    segmenter = load_segmenter(config.model)
    tasks = find_inputs(config.images)
    wanted = {"overlays": config.overlays, "maps": config.maps, "dicom_seg": config.dicom_seg}
    with ProgressJournal(config.out, config.model, **wanted) as journal:
        predict(config, segmenter, journal.missing(tasks), journal)
        failed = write_outputs(config.out, segmenter.config, tasks, journal, config.shown)
    print(f"{len(tasks) - failed} of {len(tasks)} X-rays: {config.out / 'report.html'}")
    if failed:
        print(
            f"{failed} files were left out; {config.out / 'failed.csv'} says why", file=sys.stderr
        )
    return 3 if failed else 0


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line."""
    config = tyro.cli(
        Config, prog="python -m experiments.predict", args=arguments, description=__doc__
    )
    keep_memory()
    with errors_to_exit_code_2(DataError, ExportError, OSError):
        code = run(config)
    sys.exit(code)


if __name__ == "__main__":
    main()
