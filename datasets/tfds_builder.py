"""The base of both builders: processes write shards in parallel.

TFDS's generator-based builders need TensorFlow beyond 1 GB, and keep the order by sorting the whole
data set in memory. Here each process reads, validates, encodes and writes whole shards, in order and
with one image in memory at a time.
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
from tensorflow_datasets.core import dataset_builder, example_serializer, file_adapters
from tqdm import tqdm

from chexseg_jax.runtime.atomic_write import explain_write_errors
from datasets.errors import DataError

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
    """A written shard: its image ids, their digests, and its size in bytes."""

    image_ids: list[str]
    digests: list[bytes]
    size: int


class ShardedBuilder(dataset_builder.FileReaderBuilder):
    """A builder that writes its subclass's items in parallel."""

    VERSION: tfds.core.Version

    def __init__(self, *, workers: int = 0, progress: bool = True, **options: Any) -> None:
        """Take TFDS's options too; `workers` is the number of processes, 0 for this one."""
        self.workers, self.progress = workers, progress
        super().__init__(**options)

    @abstractmethod
    def find_items(self, raw: Path) -> Mapping[str, Sequence[Item]]:
        """Find each split's items, in order."""

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
        infos, manifest = [], {}
        for split, items in self.find_items(Path(dl_manager.manual_dir)).items():
            template = self._get_filename_template(split_name=split)
            runs = cut(items)
            paths = [
                os.fspath(template.sharded_filepath(shard_index=i, num_shards=len(runs)))
                for i in range(len(runs))
            ]
            with tqdm(total=len(items), desc=split, unit="image", disable=not self.progress) as bar:
                shards = list(self._write_shards(paths, runs, bar))
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

    def _write_shards(
        self, paths: list[str], runs: list[Sequence[Item]], bar: tqdm
    ) -> Iterator[Shard]:
        """Write shards and yield them in order, so that the first of several errors is raised."""
        make_example, features = self.make_example, self.info.features
        if self.workers == 0:
            for path, items in zip(paths, runs, strict=True):
                yield write_shard(path, items, make_example, features, bar.update)
            return
        # Spawn, not fork: the caller may run threads, such as JAX's.
        pool = ProcessPoolExecutor(min(self.workers, len(runs)), mp_context=get_context("spawn"))
        try:
            for shard in pool.map(write_shard, paths, runs, repeat(make_example), repeat(features)):
                bar.update(len(shard.image_ids))
                yield shard
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed, perhaps for lack of memory; use fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


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
    path: str,
    items: Sequence[Any],
    make_example: Callable[[Any], Example],
    features: tfds.features.FeaturesDict,
    advance: Callable[[], Any] = lambda: None,
) -> Shard:
    """Read, validate, encode and write one shard."""
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    image_ids: list[str] = []
    digests: list[bytes] = []

    def records() -> Iterator[tuple[str, bytes]]:
        for item in items:
            example = make_example(item)
            image_ids.append(example["image_id"])
            digests.append(_digest(_canonical_bytes(example)))
            encoded = serializer.get_tf_example(features.encode_example(example))
            # TFDS's own call is not deterministic: equal examples could differ in the order of fields.
            yield example["image_id"], encoded.SerializeToString(deterministic=True)
            advance()

    with explain_write_errors(Path(path)):
        file_adapters.ArrayRecordFileAdapter.write_examples(path, records())
    return Shard(image_ids, digests, Path(path).stat().st_size)


def _canonical_bytes(value: Any) -> Iterator[bytes]:
    """Yield an example's content sorted by name, independent of the order of its fields."""
    if isinstance(value, Mapping):
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
        total.update(len(piece).to_bytes(8, "little"))
        total.update(piece)
    return total.digest()
