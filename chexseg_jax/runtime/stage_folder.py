"""Stage folders: a fingerprint in the name, shards written whole, the manifest last.

A folder `<workdir>/<stage>-<fingerprint>` whose manifest exists is finished and is used as it is. A
shard that exists is whole. So a run that was stopped anywhere goes on by doing what is missing.
"""

import csv
import hashlib
import io
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, SupportsIndex
from zipfile import BadZipFile

import jax
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from chexseg_jax.runtime.atomic_write import CorruptFile, atomic_write, remove_stale_parts
from chexseg_jax.runtime.sharding import wait_for_all

SHARD = 256
"""Examples in a shard."""
_parsing = threading.Lock()
"""NumPy parses headers as Python; before 3.11.8 that may fail if two threads do (CPython gh-106905)."""


def digest(content: Any) -> str:
    """Returns a short SHA-256 of anything that JSON can say."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest_file(path: Path) -> str:
    """Returns the SHA-256 of a file, for files that a stage reads from outside the run."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Writes JSON whole; not-a-number becomes null, which JSON can say."""
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(_plain(content), indent=1) + "\n")


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Writes rows of cells whole, as they come."""
    with atomic_write(path) as aside, aside.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _plain(content: Any) -> Any:
    """Returns content with NaN as None and NumPy scalars as Python's."""
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    if isinstance(content, Path):
        return str(content)
    return None if isinstance(content, float) and content != content else content


@dataclass(frozen=True)
class StageFolder:
    """One stage's folder, finished or not."""

    path: Path
    stage: str
    fingerprint: str
    settings: dict[str, Any]
    inputs: dict[str, str]

    @property
    def finished(self) -> bool:
        """Whether the manifest, which is written last, is there."""
        return (self.path / "manifest.json").exists()

    @property
    def manifest(self) -> dict[str, Any]:
        """What `finish` wrote."""
        return json.loads((self.path / "manifest.json").read_text())

    def finish(self, **results: Any) -> None:
        """Writes the manifest, once every process is done; the folder is finished from here on."""
        wait_for_all(f"finish {self.path.name}")
        if jax.process_index() == 0:
            manifest = {
                "stage": self.stage,
                "fingerprint": self.fingerprint,
                "settings": self.settings,
                "inputs": self.inputs,
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                **results,
            }
            remove_stale_parts(self.path, all_hosts=True)
            write_json(self.path / "manifest.json", manifest)
        wait_for_all(f"finished {self.path.name}")


def open_stage_folder(
    workdir: Path, stage: str, version: int, settings: Any, inputs: Mapping[str, str]
) -> StageFolder:
    """Returns the folder of a stage with these settings on these inputs, made if need be.

    Args:
        workdir: where all stages' folders are.
        stage: the stage's name.
        version: raised by the stage's author when the same settings give another result.
        settings: a dataclass or a mapping; all that the result depends on beside the inputs.
        inputs: fingerprints of what the stage reads, by name.
    """
    plain = dict(settings) if isinstance(settings, Mapping) else asdict(settings)
    fingerprint = digest([stage, version, plain, dict(inputs)])
    folder = StageFolder(
        (workdir / f"{stage}-{fingerprint}").absolute(), stage, fingerprint, plain, dict(inputs)
    )
    folder.path.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(folder.path)
    return folder


def shards(examples: int) -> list[range]:
    """Returns the examples of every shard."""
    return [range(start, min(start + SHARD, examples)) for start in range(0, examples, SHARD)]


def shard_path(folder: Path, name: str, index: int, count: int, suffix: str) -> Path:
    """Returns a shard's path, such as `cams-00000-of-00032.npz`."""
    return folder / f"{name}-{index:05d}-of-{count:05d}.{suffix}"


def missing_shards(
    folder: StageFolder, name: str, examples: int, suffix: str
) -> Iterator[tuple[Path, range]]:
    """Gives this process's shards that are not there yet, with a bar of the examples done."""
    parts = shards(examples)
    mine = range(jax.process_index(), len(parts), jax.process_count())
    total = sum(len(parts[i]) for i in mine)
    quiet = jax.process_index() > 0
    with tqdm(total=total, desc=folder.stage, unit=" images", disable=quiet) as bar:
        for index in mine:
            path = shard_path(folder.path, name, index, len(parts), suffix)
            if not path.exists():
                yield path, parts[index]
            bar.update(len(parts[index]))


def write_records(path: Path, examples: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Writes examples, a few named arrays each, to one ArrayRecord file, whole."""
    with atomic_write(path) as aside:
        writer = ArrayRecordWriter(str(aside), "group_size:1")
        for example in examples:
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **example)
            writer.write(buffer.getvalue())
        writer.close()


def _opened(paths: Sequence[Path]) -> ArrayRecordDataSource:
    """Returns the records of shards, whose ends have been read."""
    source = ArrayRecordDataSource([str(path) for path in paths])
    source.__len__()
    return source


def _check_shard(path: Path) -> None:
    """Checks that a shard can be opened."""
    if not path.exists():
        raise CorruptFile.at(path, "gone")
    try:
        _opened([path])
    except (OSError, RuntimeError, ValueError) as error:
        raise CorruptFile.at(path, "cut short") from error


class Records:
    """The examples of all shards of one name in a stage's folder, by index."""

    def __init__(self, folder: StageFolder, name: str) -> None:
        """Opens the shards; the folder must be finished.

        Raises:
            Damaged: a shard is gone or cut short.
        """
        found = sorted(folder.path.glob(f"{name}-*.arrayrecord"))
        count = int(found[0].stem.rpartition("-")[2]) if found else 1
        paths = [shard_path(folder.path, name, i, count, "arrayrecord") for i in range(count)]
        self._folder, self._name = folder.path, name
        try:
            self._source = _opened(paths)
        except (OSError, RuntimeError, ValueError):
            for path in paths:  # each by itself, to name the one
                _check_shard(path)
            raise
        self.fingerprint = folder.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex, /) -> dict[str, np.ndarray]:
        """Returns one example's arrays."""
        try:
            record = self._source[int(index)]
            with _parsing, np.load(io.BytesIO(record), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, RuntimeError, ValueError, BadZipFile) as error:
            raise CorruptFile.at(self._folder / f"{self._name}-*.arrayrecord", "damaged") from error
