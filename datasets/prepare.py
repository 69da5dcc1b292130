"""Prepare data from raw folders, atomically."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import tensorflow_datasets as tfds
from filelock import FileLock, Timeout

from datasets.errors import DataError
from datasets.phantom import write_phantoms
from datasets.source import BUILDERS, folder_of

RAW_PHANTOM: Final = "raw-phantom"
PHANTOM: Final = "phantom.json"
"""The arguments of `prepare_phantoms`; written last, as a sign of completion."""

HELD: Final = ".held"
"""The file by which a folder is held."""

MOMENT: Final = 60.0
"""Seconds in which a folder that was made is surely held."""


def prepare(
    name: str, raw: Path, data_dir: Path, *, workers: int = 0, resize_masks: bool = False
) -> None:
    """Convert a download to the records that `open_source` opens.

    Args:
        name: `chexpert` or `chexlocalize`.
        raw: the folder of the download, or its parent.
        data_dir: the folder of prepared data.
        workers: number of processes; 0 is this one.
        resize_masks: resize masks to images of another size, such as CheXpert-v1.0-small's, which is
            an error otherwise.

    Raises:
        DataError: the input is invalid, or the data exists. No partial output remains.
    """
    target = folder_of(data_dir, name)
    if target.exists():
        raise DataError(f"{target}: is there already; remove it to prepare {name} again")
    if not raw.is_dir() or not any(raw.iterdir()):
        raise DataError(f"{raw}: no such folder, or empty; give --raw the folder of the download")
    options = {"resize_masks": resize_masks} if name == "chexlocalize" else {}
    with _aside(data_dir) as folder:
        builder: Any = BUILDERS[name](data_dir=folder, workers=workers, **options)
        builder.download_and_prepare(
            download_dir=folder / "downloads",
            download_config=tfds.download.DownloadConfig(
                manual_dir=raw,
                try_download_gcs=False,
                compute_stats=tfds.download.ComputeStatsMode.SKIP,
            ),
            file_format="array_record",
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        folder_of(folder, name).rename(target)


def prepare_phantoms(
    data_dir: Path,
    *,
    seed: int,
    train: int,
    valid: int,
    test: int,
    short_side: int,
    workers: int = 0,
) -> None:
    """Write phantoms and prepare both data sets from them, unless that was done.

    Phantoms of other arguments are replaced.

    Raises:
        DataError: `data_dir` contains anything else.
    """
    options: dict[str, Any] = {
        "seed": seed,
        "train": train,
        "valid": valid,
        "test": test,
        "short_side": short_side,
    }
    arguments = options | {name: str(builder.VERSION) for name, builder in BUILDERS.items()}
    if _read_arguments(data_dir) == arguments:
        return
    if _read_arguments(data_dir) is None and data_dir.exists() and any(data_dir.iterdir()):
        raise DataError(
            f"{data_dir}: holds other things than phantoms; choose another --data-dir for them"
        )
    with _aside(data_dir.parent) as folder:
        ready = folder / "ready"
        raw = ready / RAW_PHANTOM
        write_phantoms(raw, **options, workers=workers)
        for name in BUILDERS:
            prepare(name, raw, ready, workers=workers)
        (ready / PHANTOM).write_text(json.dumps(arguments, indent=2) + "\n")
        if _read_arguments(data_dir) == arguments:  # another process was faster
            return
        if data_dir.exists():
            data_dir.rename(folder / "old")
        ready.rename(data_dir)


def _read_arguments(data_dir: Path) -> dict[str, Any] | None:
    """Read the arguments of the phantoms in a folder, if it has complete ones."""
    path = data_dir / PHANTOM
    return json.loads(path.read_text()) if path.is_file() else None


def _sweep(data_dir: Path) -> None:
    """Deletes what a killed preparation left: a living one holds its folder from the first moment."""
    for folder in data_dir.glob(".preparing-*"):
        with suppress(FileNotFoundError):  # somebody else swept it
            if time.time() - folder.stat().st_mtime < MOMENT:
                continue
            with suppress(Timeout), FileLock(folder / HELD, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _aside(data_dir: Path) -> Iterator[Path]:
    """Gives a folder on the same disk as `data_dir`, gone afterwards, as are folders made for it."""
    new = [folder for folder in (data_dir, *data_dir.parents) if not folder.exists()]
    data_dir.mkdir(parents=True, exist_ok=True)
    _sweep(data_dir)
    folder = Path(tempfile.mkdtemp(prefix=".preparing-", dir=data_dir))
    try:
        with FileLock(folder / HELD, timeout=0):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for made in new:
            with suppress(OSError):  # what was made for a success stays
                made.rmdir()
