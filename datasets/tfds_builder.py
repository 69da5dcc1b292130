"""The base of both builders: shards written side by side by processes.

TFDS's generator-based builders are not used: beyond 1 GB their writer needs TensorFlow, and with the
order kept it sorts the whole data set in memory. A shard-based builder keeps the order and streams, and
as its shards are independent, each process here reads, checks, encodes and writes whole shards: nothing
is left that is serial, and one image at a time is held.
"""

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, file_adapters
from tqdm import tqdm

from chexseg_jax.runtime.atomic_write import explain_write_errors
from datasets.errors import DataError

Example = dict[str, Any]

SHARD_BYTES: Final = 64 * 2**20
"""Images go into a shard until their files add up to this: quick to write, and not too many files."""

MANIFEST: Final = "manifest.json"
"""Beside the records: for each split its fingerprint and the ids of its images, in order."""


class Item(Protocol):
    """What becomes an example; it knows roughly how many bytes that will be."""

    @property
    def size(self) -> int:
        """The bytes of the image's file."""


@dataclass(frozen=True)
class Part:
    """The items of one shard, and how one becomes an example; called, it gives them by image id."""

    items: Sequence[Any]
    make_example: Callable[[Any], Example]

    def __call__(self) -> Iterator[tuple[str, Example]]:
        """Gives the examples, made one by one."""
        for item in self.items:
            example = self.make_example(item)
            yield example["image_id"], example


@dataclass(frozen=True)
class Shard:
    """What was written: the images' ids and digests, and the bytes on disk."""

    image_ids: list[str]
    digests: list[bytes]
    size: int


class ShardedBuilder(tfds.core.ShardBasedBuilder):
    """A builder that is told its items and how to encode one; it writes them in parallel."""

    VERSION: tfds.core.Version

    def __init__(self, *, workers: int = 0, progress: bool = True, **options: Any) -> None:
        """Takes TFDS's own options too; `workers` processes write, 0 being this one."""
        self.workers, self.progress = workers, progress
        super().__init__(**options)

    @abstractmethod
    def find_items(self, raw: Path) -> Mapping[str, Sequence[Item]]:
        """Returns for each split its items, in order."""

    @staticmethod
    @abstractmethod
    def make_features() -> tfds.features.FeaturesDict:
        """Returns the features of an example."""

    @staticmethod
    @abstractmethod
    def make_example(item: Any) -> Example:
        """Returns the example of one item, checked."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=self.make_features(),
            description=type(self).__doc__,
            disable_shuffling=True,
        )

    def _log_download_bytes(self) -> None:
        """Says nothing: nothing is downloaded, and the folder TFDS would name is a passing one."""

    _log_download_done = _log_download_bytes

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[Part]]:
        found = self.find_items(Path(dl_manager.manual_dir))
        return {
            split: [Part(items, self.make_example) for items in cut(items)]
            for split, items in found.items()
        }

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: Any = None
    ) -> None:
        """Writes all shards, and the manifest; TFDS itself would write one after the other."""
        infos, manifest = [], {}
        for split, parts in self._shard_iterators_per_split(dl_manager).items():
            template = self._get_filename_template(split_name=split)
            paths = [
                os.fspath(template.sharded_filepath(shard_index=i, num_shards=len(parts)))
                for i in range(len(parts))
            ]
            total = sum(len(part.items) for part in parts)
            with tqdm(total=total, desc=split, unit="image", disable=not self.progress) as bar:
                shards = list(_write(paths, parts, self.info.features, self.workers, bar))
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[len(shard.image_ids) for shard in shards],
                    num_bytes=sum(shard.size for shard in shards),
                    filename_template=template,
                )
            )
            identity = f"{self.name} {self.VERSION} {split}".encode()
            digests = [digest for shard in shards for digest in shard.digests]
            manifest[split] = {
                "fingerprint": _digest([identity, *digests]).hex(),
                "image_ids": [image_id for shard in shards for image_id in shard.image_ids],
            }
        self.info.set_splits(tfds.core.splits.SplitDict(infos))
        with explain_write_errors(Path(self.data_dir)):
            (Path(self.data_dir) / MANIFEST).write_text(json.dumps(manifest))


def cut(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Returns items in as many runs as it takes to keep each within the size of a shard."""
    starts, held = [0], 0
    for i, item in enumerate(items):
        if held and held + item.size > SHARD_BYTES:
            starts.append(i)
            held = 0
        held += item.size
    return [items[a:b] for a, b in zip(starts, [*starts[1:], len(items)], strict=True)]


def _write(
    paths: list[str],
    parts: Sequence[Part],
    features: tfds.features.FeaturesDict,
    workers: int,
    bar: tqdm,
) -> Iterator[Shard]:
    """Gives the shards in order, so that of several faults the first is the one reported."""
    if workers == 0:
        for path, part in zip(paths, parts, strict=True):
            yield write_shard(path, part, features, bar.update)
        return
    # Not forked: the caller may run threads, JAX's among them.
    pool = ProcessPoolExecutor(min(workers, len(parts)), mp_context=get_context("spawn"))
    try:
        for shard in pool.map(write_shard, paths, parts, repeat(features)):
            bar.update(len(shard.image_ids))
            yield shard
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, perhaps for want of memory; use fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def write_shard(
    path: str,
    part: Part,
    features: tfds.features.FeaturesDict,
    advance: Callable[[], Any] = lambda: None,
) -> Shard:
    """Reads, checks, encodes and writes one shard."""
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    image_ids: list[str] = []
    digests: list[bytes] = []

    def records() -> Iterator[tuple[str, bytes]]:
        for image_id, example in part():
            image_ids.append(image_id)
            digests.append(_digest(_pieces(example)))
            encoded = serializer.get_tf_example(features.encode_example(example))
            # TFDS's own call leaves the order of fields to chance, and equal data would differ.
            yield image_id, encoded.SerializeToString(deterministic=True)
            advance()

    with explain_write_errors(Path(path)):
        file_adapters.ArrayRecordFileAdapter.write_examples(path, records())
    return Shard(image_ids, digests, Path(path).stat().st_size)


def _pieces(value: Any) -> Iterator[bytes]:
    """Gives what makes an example, by name, whatever order its dictionary has."""
    if isinstance(value, Mapping):
        for name in sorted(value):
            yield name.encode()
            yield from _pieces(value[name])
    elif isinstance(value, np.ndarray):
        yield repr((value.dtype.str, value.shape)).encode()
        yield value.tobytes()
    else:
        yield value if isinstance(value, bytes) else repr(value).encode()


def _digest(pieces: Iterable[bytes]) -> bytes:
    """Returns the SHA-256 of byte strings, each with its length, so that no two lists agree."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(len(piece).to_bytes(8, "little"))
        total.update(piece)
    return total.digest()
