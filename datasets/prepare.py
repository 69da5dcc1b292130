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

LOCK: Final = ".lock"
"""The file that a preparation keeps locked in its staging folder while it runs."""

GRACE: Final = 60.0
"""Age in seconds below which a staging folder may not be locked yet."""


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
    with _staging_folder(data_dir) as folder:
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
    """Write phantoms and prepare both data sets from them, replacing those of other arguments.

    Does nothing if `data_dir` holds the phantoms of these arguments.

    Raises:
        DataError: `data_dir` contains anything but phantoms.
    """
    options: dict[str, Any] = dict(
        seed=seed, train=train, valid=valid, test=test, short_side=short_side
    )
    arguments = options | {name: str(builder.VERSION) for name, builder in BUILDERS.items()}
    if _read_arguments(data_dir) == arguments:
        return
    if _read_arguments(data_dir) is None and data_dir.exists() and any(data_dir.iterdir()):
        raise DataError(
            f"{data_dir}: holds other things than phantoms; choose another --data-dir for them"
        )
    with _staging_folder(data_dir.parent) as folder:
        ready = folder / "ready"
        raw = ready / RAW_PHANTOM
        write_phantoms(raw, **options, workers=workers)
        for name in BUILDERS:
            prepare(name, raw, ready, workers=workers)
        (ready / PHANTOM).write_text(json.dumps(arguments, indent=2) + "\n")
        if _read_arguments(data_dir) == arguments:  # another process has finished first
            return
        if data_dir.exists():
            data_dir.rename(folder / "old")
        ready.rename(data_dir)


def _read_arguments(data_dir: Path) -> dict[str, Any] | None:
    """Read the arguments of the phantoms in a folder, if it has complete ones."""
    path = data_dir / PHANTOM
    return json.loads(path.read_text()) if path.is_file() else None


def _delete_abandoned(data_dir: Path) -> None:
    """Delete staging folders of killed preparations; a running one keeps its folder locked."""
    for folder in data_dir.glob(".preparing-*"):
        with suppress(FileNotFoundError):  # another process has deleted it
            if time.time() - folder.stat().st_mtime < GRACE:
                continue
            with suppress(Timeout), FileLock(folder / LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _staging_folder(data_dir: Path) -> Iterator[Path]:
    """Create a folder on the disk of `data_dir`, deleted afterwards with parents that stay empty."""
    new = [folder for folder in (data_dir, *data_dir.parents) if not folder.exists()]
    data_dir.mkdir(parents=True, exist_ok=True)
    _delete_abandoned(data_dir)
    folder = Path(tempfile.mkdtemp(prefix=".preparing-", dir=data_dir))
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in new:
            with suppress(OSError):  # not empty after a success
                parent.rmdir()
