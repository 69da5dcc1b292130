"""The base of both builders: processes write shards in parallel.

TFDS's generator-based builders need TensorFlow beyond 1 GB, and keep the order by sorting the whole
data set in memory. Here each process reads, validates, encodes and writes whole shards, in order and
with one image in memory at a time. A finished shard is kept until all are, so that a preparation that
was killed goes on.
"""

import hashlib
import json
import os
import signal
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder, example_serializer, file_adapters
from tqdm import tqdm

from chexseg_jax.runtime.atomic_write import atomic_write, explain_write_errors
from datasets.errors import DataError, Fault, Faults

Example = dict[str, Any]

SHARD_BYTES: Final = 64 * 2**20
"""The total size of the image files in a shard: quick to write, without too many shards."""

MANIFEST: Final = "manifest.json"
"""A file beside the records: each split's fingerprint and its image ids in order."""


class Item(Protocol):
    """The source of one example, of known approximate size."""

    @property
    def size(self) -> int:
        """The size of the image file in bytes."""


@dataclass(frozen=True)
class Shard:
    """A written shard: its file and size in bytes, its image ids, their digests, and its faults."""

    path: str
    size: int
    image_ids: list[str]
    digests: list[str]
    faults: list[tuple[Any, ...]]


class ShardedBuilder(dataset_builder.FileReaderBuilder):
    """A builder that writes its subclass's items in parallel, and goes on where it was stopped."""

    VERSION: tfds.core.Version

    def __init__(
        self,
        *,
        items: Mapping[str, Sequence[Item]],
        shards: Path,
        faults: Faults,
        workers: int = 0,
        progress: bool = True,
        **options: Any,
    ) -> None:
        """Take TFDS's options too.

        Args:
            items: each split's items, in order.
            shards: a folder on the disk of the data where finished shards outlive an interruption.
            faults: what to do with items that are not valid.
            workers: number of processes; 0 is this one.
            progress: show progress bars.
            options: of TFDS.
        """
        self.items, self.shards, self.faults = items, shards, faults
        self.workers, self.progress = workers, progress
        super().__init__(**options)

    @staticmethod
    @abstractmethod
    def make_features() -> tfds.features.FeaturesDict:
        """Describe the features of an example."""

    @staticmethod
    @abstractmethod
    def make_example(item: Any) -> Example:
        """Read and validate one item."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=self.make_features(),
            description=type(self).__doc__,
            disable_shuffling=True,
        )

    def _log_download_bytes(self) -> None:
        """Log nothing: nothing is downloaded, and TFDS would name a temporary folder."""

    _log_download_done = _log_download_bytes

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: Any = None
    ) -> None:
        """Write all shards in parallel, which TFDS does not, and the manifest."""
        infos, manifest, written = [], {}, []
        work = partial(
            write_shard,
            folder=self.shards,
            identity=f"{self.name} {self.VERSION} {version('chexseg-jax')}",
            make_example=self.make_example,
            features=self.info.features,
            skip=self.faults.policy == "skip",
        )
        for split, items in self.items.items():
            done = each_shard(work, split, items, self.faults, self.workers, self.progress)
            shards = [shard for shard in done if shard.image_ids]
            if not shards:
                raise DataError(
                    f"{split}: every image has a fault; the first is {self.faults.found[0]}"
                )
            template = self._get_filename_template(split_name=split)
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[len(shard.image_ids) for shard in shards],
                    num_bytes=sum(shard.size for shard in shards),
                    filename_template=template,
                )
            )
            identity = f"{self.name} {self.VERSION} {split}".encode()
            digests = [bytes.fromhex(digest) for shard in shards for digest in shard.digests]
            manifest[split] = {
                "fingerprint": _digest([identity, *digests]).hex(),
                "image_ids": [image_id for shard in shards for image_id in shard.image_ids],
            }
            written += [
                (shard.path, template.sharded_filepath(shard_index=i, num_shards=len(shards)))
                for i, shard in enumerate(shards)
            ]
        self.info.set_splits(tfds.core.splits.SplitDict(infos))
        with explain_write_errors(Path(self.data_dir)):
            (Path(self.data_dir) / MANIFEST).write_text(json.dumps(manifest))
            for source, target in written:
                try:
                    Path(target).hardlink_to(source)  # if it is killed now, they are found again
                except OSError:  # on disks without hard links
                    Path(source).replace(target)


def check_items(
    make_example: Callable[[Any], Example],
    split: str,
    items: Sequence[Item],
    faults: Faults,
    workers: int = 0,
) -> None:
    """Read and validate all items without writing them, and note their faults."""
    work = partial(check_shard, make_example=make_example)
    for _ in each_shard(work, f"{split}: checking", items, faults, workers, progress=True):
        pass


def each_shard(
    work: Callable[..., Shard],
    name: str,
    items: Sequence[Item],
    faults: Faults,
    workers: int,
    progress: bool,
) -> Iterator[Shard]:
    """Work on shards and yield them in order, so that the first of several errors is raised."""
    runs = cut(items)
    with tqdm(total=len(items), desc=name, unit="image", disable=not progress) as bar:
        if workers == 0 or len(runs) == 1:  # to start a process takes longer than a small shard
            shards: Iterable[Shard] = (work(run, advance=bar.update) for run in runs)
        else:
            shards = _in_processes(work, runs, workers, bar)
        for shard in shards:
            for fault in shard.faults:
                faults.add(Fault(*fault))
            yield shard


def _in_processes(
    work: Callable[..., Shard], runs: list[Sequence[Item]], workers: int, bar: tqdm
) -> Iterator[Shard]:
    # Spawn, not fork: the caller may run threads, such as JAX's.
    pool = ProcessPoolExecutor(
        min(workers, len(runs)), mp_context=get_context("spawn"), initializer=_end_with_parent
    )
    try:
        for shard, run in zip(pool.map(work, runs), runs, strict=True):
            bar.update(len(run))
            yield shard
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, perhaps for lack of memory; use fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this process when its parent is killed, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def cut(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Cut items into consecutive runs of at most `SHARD_BYTES`, or of one larger item."""
    starts, total = [0], 0
    for i, item in enumerate(items):
        if total and total + item.size > SHARD_BYTES:
            starts.append(i)
            total = 0
        total += item.size
    return [items[a:b] for a, b in zip(starts, [*starts[1:], len(items)], strict=True)]


def write_shard(
    items: Sequence[Any],
    *,
    folder: Path,
    identity: str,
    make_example: Callable[[Any], Example],
    features: tfds.features.FeaturesDict,
    skip: bool,
    advance: Callable[[], Any] = lambda: None,
) -> Shard:
    """Read, validate, encode and write one shard, unless the folder holds it.

    Its name is a digest of its items, with the sizes and times of their files, so that a shard of other
    input or settings is never taken for it.
    """
    key = _digest([identity.encode(), *(repr(item).encode() for item in items)]).hex()
    path, note = folder / f"{key}.array_record", folder / f"{key}.json"
    if (shard := _read_note(note, path)) and (skip or not shard.faults):
        for _ in items:
            advance()
        return shard
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    image_ids: list[str] = []
    digests: list[str] = []
    faults: list[tuple[Any, ...]] = []

    def records() -> Iterator[tuple[str, bytes]]:
        for item in items:
            advance()
            try:
                example = make_example(item)
            except Fault as fault:
                faults.append(fault.args)
                if skip:
                    continue
                raise _Invalid from None
            image_ids.append(example["image_id"])
            digests.append(_digest(_canonical_bytes(example)).hex())
            encoded = serializer.get_tf_example(features.encode_example(example))
            # TFDS's own call is not deterministic: equal examples could differ in the order of fields.
            yield example["image_id"], encoded.SerializeToString(deterministic=True)

    try:
        with atomic_write(path) as aside:
            file_adapters.ArrayRecordFileAdapter.write_examples(os.fspath(aside), records())
    except _Invalid:
        raise Fault(*faults[0]) from None
    shard = Shard(os.fspath(path), path.stat().st_size, image_ids, digests, faults)
    with atomic_write(note) as aside:  # after the records: it says that they are whole
        aside.write_text(json.dumps(vars(shard)))
    return shard


class _Invalid(Exception):
    """An invalid item; of a type that is never taken for an error of the disk."""


def _read_note(note: Path, path: Path) -> Shard | None:
    """Return the finished shard at a path, None if there is none."""
    try:
        shard = Shard(**json.loads(note.read_text()) | {"path": os.fspath(path)})
        return shard if path.stat().st_size == shard.size else None
    except (OSError, ValueError):
        return None


def check_shard(
    items: Sequence[Any],
    *,
    make_example: Callable[[Any], Example],
    advance: Callable[[], Any] = lambda: None,
) -> Shard:
    """Read and validate the items of one shard without writing it."""
    faults = []
    for item in items:
        advance()
        try:
            make_example(item)
        except Fault as fault:
            faults.append(fault.args)
    return Shard("", 0, [], [], faults)


def _canonical_bytes(value: Any) -> Iterator[bytes]:
    """Yield an example's content sorted by name, independent of the order of its fields."""
    if isinstance(value, dict):  # Mapping's check is slow
        for name in sorted(value):
            yield name.encode()
            yield from _canonical_bytes(value[name])
    elif isinstance(value, np.ndarray):
        yield repr((value.dtype.str, value.shape)).encode()
        yield value.tobytes()
    else:
        yield value if isinstance(value, bytes) else repr(value).encode()


def _digest(pieces: Iterable[bytes]) -> bytes:
    """Hash byte strings with SHA-256, each prefixed by its length to be unambiguous."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(len(piece).to_bytes(8, "little") + piece)
    return total.digest()
