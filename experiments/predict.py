"""Segment a folder of X-rays: `python -m experiments.predict --model DIR --images PATH --out OUT`.

`--model` is a folder of `experiments.export`; `--images` takes files, folders and globs of JPEG, PNG and
DICOM files. Writes to `--out`:

    pred_segmentations.json   CheXlocalize's run lengths at native size, for `experiments.evaluate` too
    findings.csv              maximum and mean probability, and area, of every finding in every image
    overlays/                 a PNG of every image with its masks
    report.html               the first images, to look through
    failed.csv                files that could not be used or lack a result, and why

`--maps` adds probability maps (16-bit PNG, letterboxed), `--dicom-seg` a DICOM Segmentation for every
DICOM file with a mask that is not empty. The same command resumes a stopped one. Exit codes: 0, success;
2, nothing could be started; 3, some files were left out or lack a result. Not a medical device.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float, UInt8
from tqdm import tqdm

from chexseg_jax.inference.export import ExportedNetwork, ExportError, load_segmenter
from chexseg_jax.radiographs.radiograph import Radiograph, RadiographError, error_text
from chexseg_jax.radiographs.read import read_radiograph
from chexseg_jax.runtime.atomic_write import WriteError
from chexseg_jax.runtime.cpu import keep_memory
from datasets.errors import DataError
from experiments.prediction.inputs import InputFile, find_inputs
from experiments.prediction.outputs import write_outputs
from experiments.prediction.progress import ProgressJournal
from experiments.prediction.rendering import RenderOptions, render_result
from experiments.run.cli import exit_on_errors


@dataclass(frozen=True)
class PredictConfig:
    """Segment X-rays."""

    model: Path
    """A folder of `experiments.export`."""
    images: tuple[str, ...]
    """Files, folders (searched recursively) and globs."""
    out: Path
    """The folder of the results; finished results in it are not made again."""
    batch_size: int = 32
    """Number of X-rays in a batch, over all devices of this machine."""
    threads: int = 8
    """Number of threads that read X-rays, and of those that render results."""
    overlays: bool = True
    """Write every X-ray with its masks: most of the time if the network is small."""
    maps: bool = False
    """Write probability maps, a 16-bit PNG per finding."""
    dicom_seg: bool = False
    """Write a DICOM Segmentation for each DICOM file."""
    shown: int = 60
    """Number of X-rays on the page."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.threads < 1:
            raise ValueError("--batch-size and --threads must be 1 or more")


Letterboxed = UInt8[np.ndarray, "s s 1"]


def read_letterboxed(path: Path, segmenter: ExportedNetwork) -> tuple[Radiograph, Letterboxed]:
    """Read a radiograph and letterbox it for a segmenter."""
    radiograph = read_radiograph(path)
    return radiograph, segmenter.letterbox(radiograph.image)


def prefetch(
    pool: ThreadPoolExecutor, inputs: list[InputFile], segmenter: ExportedNetwork, depth: int
) -> Iterator[tuple[InputFile, Future[tuple[Radiograph, Letterboxed]]]]:
    """Yield files with the futures of their images, reading `depth` of them ahead."""
    files = iter(inputs)
    queue = [(f, pool.submit(read_letterboxed, f.path, segmenter)) for f in islice(files, depth)]
    while queue:
        yield queue.pop(0)
        queue += [(f, pool.submit(read_letterboxed, f.path, segmenter)) for f in islice(files, 1)]


def predict_batches(
    config: PredictConfig,
    segmenter: ExportedNetwork,
    inputs: list[InputFile],
    journal: ProgressJournal,
) -> None:
    """Segment the files batch by batch, and record every result or failure."""
    batch, side = config.batch_size, segmenter.image_size
    options = RenderOptions(
        config.out,
        segmenter.thresholds,
        overlays=config.overlays,
        maps=config.maps,
        dicom_seg=config.dicom_seg,
        fingerprint=journal.fingerprint,
    )
    # Two pools: in a single one, reading ahead could hold up rendering indefinitely.
    with (
        tqdm(total=len(inputs), desc="predict", unit=" images") as bar,
        _threads(config.threads) as readers,
        _threads(config.threads) as renderers,
    ):
        queue = prefetch(readers, inputs, segmenter, 2 * batch)
        while futures := list(islice(queue, batch)):
            ready: list[tuple[InputFile, Radiograph, Letterboxed]] = []
            for file, future in futures:
                try:
                    ready.append((file, *future.result()))
                except Exception as error:  # one file never ends a batch
                    journal.record_failure(file, _reason(file, error))
                    bar.update()
            if not ready:
                continue
            images = np.zeros(
                (batch, side, side, 1), np.uint8
            )  # always this shape: one compilation
            images[: len(ready)] = [image for *_, image in ready]
            maps: Float[np.ndarray, "b s s k"] = segmenter(images)
            results = [
                renderers.submit(render_result, options, file, radiograph, maps[i])
                for i, (file, radiograph, _) in enumerate(ready)
            ]
            for (file, *_), result in zip(ready, results, strict=True):
                try:
                    journal.record(file, result.result())
                except WriteError:
                    raise
                except Exception as error:
                    journal.record_failure(file, _reason(file, error))
                bar.update()
            journal.flush()


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads which, when an error or a signal ends the work, drops what is queued."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _reason(file: InputFile, error: Exception) -> str:
    """Return why a file failed."""
    known = isinstance(error, RadiographError)
    return str(error) if known else f"{file.path}: {error_text(error)}; leave it out"


def predict_inputs(config: PredictConfig) -> int:
    """Predict the pending files, write the outputs, and return the exit code."""
    if config.dicom_seg and find_spec("highdicom") is None:
        raise DataError("--dicom-seg needs a package: pip install 'chexseg-jax[dicom]'")
    segmenter = load_segmenter(config.model)
    inputs = find_inputs(config.images)
    options = {"overlays": config.overlays, "maps": config.maps, "dicom_seg": config.dicom_seg}
    with ProgressJournal(config.out, config.model, **options) as journal:
        predict_batches(config, segmenter, journal.pending(inputs), journal)
        left_out, incomplete = write_outputs(config.out, segmenter, inputs, journal, config.shown)
    print(f"{len(inputs) - left_out} of {len(inputs)} X-rays: {config.out / 'report.html'}")
    faults = {
        f"{left_out} files were left out": left_out,
        f"{incomplete} lack a result": incomplete,
    }
    if said := " and ".join(text for text, count in faults.items() if count):
        print(f"{said}; {config.out / 'failed.csv'} says why", file=sys.stderr)
    return 3 if said else 0


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line."""
    config = tyro.cli(
        PredictConfig, prog="python -m experiments.predict", args=arguments, description=__doc__
    )
    keep_memory()
    with exit_on_errors(DataError, ExportError, OSError):
        code = predict_inputs(config)
    sys.exit(code)


if __name__ == "__main__":
    main()
