"""Prepare data from raw folders, atomically; what was interrupted goes on."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import tensorflow_datasets as tfds
from filelock import FileLock, Timeout
from tqdm import tqdm

from chexseg_jax.runtime.atomic_write import atomic_write, remove_stale_parts
from datasets.chexlocalize.builder import find_annotated
from datasets.chexpert.builder import find_labelled
from datasets.errors import DataError, FaultPolicy, Faults
from datasets.folder import find_folder
from datasets.mimic import find_mimic
from datasets.phantom import write_phantoms
from datasets.source import BUILDERS, folder_of
from datasets.tfds_builder import Item, check_items

RAW_PHANTOM: Final = "raw-phantom"
PHANTOM: Final = "phantom.json"
"""The arguments of `prepare_phantoms`; written last, as a sign of completion."""

LOCK: Final = ".lock"
"""The file that a preparation keeps locked in its staging folder while it runs."""

GRACE: Final = 60.0
"""Age in seconds below which a staging folder may not be locked yet."""

FAULTS: Final = "faults.csv"
READY: Final = "ready"
SHARDS: Final = "shards"
TARGETS: Final = {"folder": "chexpert", "mimic": "chexpert"}
"""The data set that a command prepares, where it has another name."""

FINISHED: Final = "finished.json"
"""The command whose result a staging folder holds complete, to be moved to its place."""


def prepare(
    name: str,
    raw: Path,
    data_dir: Path,
    *,
    workers: int = 0,
    resize_masks: bool = False,
    labels: str | None = None,
    masks: Path | None = None,
    on_fault: FaultPolicy = "stop",
    fault_limit: float | None = None,
) -> Faults:
    """Convert a download to the records that `open_source` opens.

    Finished shards of a preparation that was stopped, by whatever, are used again.

    Args:
        name: `chexpert`, `chexlocalize`, `mimic`, or `folder` for data in no known layout.
        raw: the folder of the download, or its parent; the images' folder for `folder`.
        data_dir: the folder of prepared data.
        workers: number of processes; 0 is this one.
        resize_masks: resize masks to images of another size, such as CheXpert-v1.0-small's, which is
            an error otherwise.
        labels: the name or path of a table of labels; required for `folder`.
        masks: CheXlocalize's JSON or a folder of PNGs, for `folder`.
        on_fault: `stop` at the first fault, `list` all and write nothing else, or `skip` their rows.
        fault_limit: number of rows, or their share below 1, that may be skipped.

    Returns:
        The faults that were listed or skipped, which faults.csv in `data_dir` holds too.

    Raises:
        DataError: the input is invalid, the data exists, or another preparation of it runs.
    """
    if not raw.is_dir() or not any(raw.iterdir()):
        raise DataError(f"{raw}: no such folder, or empty; give --raw the folder of the download")
    faults = Faults(on_fault, fault_limit)
    find = partial(_find, name, raw, faults, labels=labels, masks=masks, resize_masks=resize_masks)
    if on_fault == "list":
        _list(find, data_dir, faults, workers)
        return faults
    targets = ["chexpert", "chexlocalize"] if masks else [TARGETS.get(name, name)]
    command = [name, str(raw.resolve()), labels, str(masks), resize_masks, on_fault]
    with _staging(data_dir, targets) as folder:
        if not _is_finished(folder, command, data_dir, targets):
            for target in targets:
                if (place := folder_of(data_dir, target)).exists():
                    raise DataError(f"{place}: is there already; remove it to prepare it again")
            shutil.rmtree(folder / READY, ignore_errors=True)
            for target, items in find().items():
                _build(target, items, folder, faults, workers)
            if faults.found:
                faults.write(data_dir / FAULTS)
            with atomic_write(folder / FINISHED) as aside:
                aside.write_text(json.dumps(command))
        for target in targets:
            if (built := folder_of(folder / READY, target)).exists():
                place = folder_of(data_dir, target)
                place.parent.mkdir(parents=True, exist_ok=True)
                built.rename(place)
        shutil.rmtree(folder)
    return faults


def _find(
    name: str,
    raw: Path,
    faults: Faults,
    *,
    labels: str | None,
    masks: Path | None,
    resize_masks: bool,
) -> dict[str, Mapping[str, Sequence[Item]]]:
    """Find the items of the data sets that a command prepares, by data set and split."""
    if name == "folder":
        if labels is None:
            raise DataError(f"{raw}: needs a table of its images; give --labels")
        labelled, annotated = find_folder(
            raw, Path(labels), masks, faults, resize_masks=resize_masks
        )
        return {"chexpert": labelled} | ({"chexlocalize": annotated} if masks else {})
    if name == "chexlocalize":
        return {name: find_annotated(raw, faults, resize_masks=resize_masks)}
    finder = find_mimic if name == "mimic" else find_labelled
    return {"chexpert": finder(raw, faults, labels=labels)}


def _list(
    find: Callable[[], dict[str, Mapping[str, Sequence[Item]]]],
    data_dir: Path,
    faults: Faults,
    workers: int,
) -> None:
    """Check everything, and write the faults to faults.csv and nothing else."""
    try:
        for target, splits in find().items():
            for split, items in splits.items():
                check_items(BUILDERS[target].make_example, split, items, faults, workers)
    except DataError as error:
        faults.stop(error)
    data_dir.mkdir(parents=True, exist_ok=True)
    faults.write(data_dir / FAULTS)


def _build(
    name: str, items: Mapping[str, Sequence[Item]], folder: Path, faults: Faults, workers: int
) -> None:
    """Write one data set into a staging folder."""
    builder: Any = BUILDERS[name](
        data_dir=folder / READY,
        items=items,
        shards=folder / SHARDS,
        faults=faults,
        workers=workers,
    )
    builder.download_and_prepare(
        download_dir=folder / "downloads",
        download_config=tfds.download.DownloadConfig(
            try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
        ),
        file_format="array_record",
    )


def _is_finished(folder: Path, command: list[Any], data_dir: Path, targets: list[str]) -> bool:
    """Check whether a killed preparation finished this command but for moving its result."""
    path = folder / FINISHED
    return (
        path.is_file()
        and json.loads(path.read_text()) == command
        and all(
            any(folder_of(place, target).exists() for place in (data_dir, folder / READY))
            for target in targets
        )
    )


@contextmanager
def _staging(data_dir: Path, targets: Sequence[str]) -> Iterator[Path]:
    """Lock the data sets and yield a folder, which outlives an error if it holds finished shards.

    Raises:
        DataError: another preparation holds one of them.
    """
    held: list[Path] = []
    with _new_parents(data_dir), ExitStack() as locks:
        try:
            for target in targets:
                folder = data_dir / f".preparing-{target}"
                (folder / SHARDS).mkdir(parents=True, exist_ok=True)
                try:
                    locks.enter_context(FileLock(folder / LOCK, timeout=0))
                except Timeout:
                    raise DataError(
                        f"{folder_of(data_dir, target)}: another preparation is at work on it; "
                        "wait for it, or give another --data-dir"
                    ) from None
                held.append(folder)
            remove_stale_parts(held[0] / SHARDS)
            yield held[0]
        finally:
            for folder in held:
                if not (kept := len([*folder.glob(f"{SHARDS}/*.json")])):
                    shutil.rmtree(folder, ignore_errors=True)
                elif sys.exc_info()[0]:
                    tqdm.write(
                        f"{folder}: {kept} finished shards are kept, with which the same command goes "
                        "on; remove the folder to give up",
                        file=sys.stderr,
                    )


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
    """Delete the folders of killed phantoms; running ones keep theirs locked."""
    for folder in data_dir.glob(".phantoms-*"):
        with suppress(FileNotFoundError):  # another process has deleted it
            if time.time() - folder.stat().st_mtime < GRACE:
                continue
            with suppress(Timeout), FileLock(folder / LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _staging_folder(data_dir: Path) -> Iterator[Path]:
    """Create a folder on the disk of `data_dir`, deleted afterwards with parents that stay empty."""
    with _new_parents(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        _delete_abandoned(data_dir)
        folder = Path(tempfile.mkdtemp(prefix=".phantoms-", dir=data_dir))
        try:
            with FileLock(folder / LOCK, timeout=0):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _new_parents(data_dir: Path) -> Iterator[None]:
    """Delete what of a folder and its parents is made within, and stays empty."""
    new = [folder for folder in (data_dir, *data_dir.parents) if not folder.exists()]
    try:
        yield
    finally:
        for parent in new:
            with suppress(OSError):  # not empty after a success
                parent.rmdir()
