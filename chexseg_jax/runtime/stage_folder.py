"""Stage folders: a fingerprint in the name, shards written atomically, the manifest last.

A folder `<workdir>/<stage>-<fingerprint>` whose manifest exists is finished and is reused. A shard that
exists is complete. So an interrupted run resumes by writing what is missing.
"""

import csv
import hashlib
import io
import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
_numpy_lock = threading.Lock()
"""NumPy parses headers as Python, which is not thread-safe before 3.11.8 (CPython gh-106905)."""


def digest(content: Any) -> str:
    """Return a short SHA-256 of anything that JSON can represent."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file, for files that a stage reads from outside the run."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN becomes null."""
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(_to_json(content), indent=1) + "\n")


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows of cells atomically."""
    with atomic_write(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _to_json(content: Any) -> Any:
    """Replace NaN by None, NumPy scalars by Python's and paths by strings."""
    if isinstance(content, Mapping):
        return {str(key): _to_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_to_json(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    if isinstance(content, Path):
        return str(content)
    return None if isinstance(content, float) and content != content else content


@dataclass(frozen=True)
class StageFolder:
    """The folder of one stage, finished or not.

    `origins` tells for each file of weights from elsewhere its source, revision and SHA-256.
    """

    path: Path
    stage: str
    fingerprint: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    version: int = 0
    origins: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the manifest, which is written last, exists."""
        return (self.path / "manifest.json").exists()

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest that `finish` wrote."""
        return json.loads((self.path / "manifest.json").read_text())

    def finish(self, **results: Any) -> None:
        """Wait for every process, then write the manifest with the stage's results."""
        wait_for_all(f"finish {self.path.name}")
        if jax.process_index() == 0:
            manifest = {
                "stage": self.stage,
                "version": self.version,
                "fingerprint": self.fingerprint,
                "settings": self.settings,
                "inputs": self.inputs,
                **({"weights": self.origins} if self.origins else {}),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                **results,
            }
            remove_stale_parts(self.path, all_hosts=True)
            write_json(self.path / "manifest.json", manifest)
        wait_for_all(f"finished {self.path.name}")


def pass_over(folder: Path, what: str) -> None:
    """Say on stderr that the folder of another version or tool is not used."""
    tqdm.write(
        f"{folder}: {what} of another version or another tool; it is passed over.", sys.stderr
    )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of any stage's folder; None, and a line on stderr, if it is none of ours."""
    try:
        match json.loads((folder / "manifest.json").read_text()):
            case {"stage": str(), "settings": dict(), "inputs": dict()} as manifest:
                return manifest
    except (OSError, ValueError, RecursionError):
        pass
    pass_over(folder, "its manifest is")
    return None


def open_stage_folder(
    workdir: Path,
    stage: str,
    version: int,
    settings: Any,
    inputs: Mapping[str, str],
    origins: Mapping[str, Any] | None = None,
) -> StageFolder:
    """Return the folder of a stage with these settings and inputs; create it if it is missing.

    Args:
        workdir: the parent of all stage folders.
        stage: the stage's name.
        version: of the stage's code; raised when the same settings give another result.
        settings: a dataclass or a mapping; everything that the result depends on beside the inputs.
        inputs: fingerprints of what the stage reads, by name.
        origins: where weights from elsewhere came from; for the manifest alone.
    """
    values = dict(settings) if isinstance(settings, Mapping) else asdict(settings)
    fingerprint = digest([stage, version, values, dict(inputs)])
    path = (workdir / f"{stage}-{fingerprint}").absolute()
    folder = StageFolder(
        path, stage, fingerprint, values, dict(inputs), version, dict(origins or {})
    )
    folder.path.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(folder.path)
    return folder


def shards(examples: int) -> list[range]:
    """Return the example indices of every shard."""
    return [range(start, min(start + SHARD, examples)) for start in range(0, examples, SHARD)]


def shard_path(folder: Path, name: str, index: int, count: int, suffix: str) -> Path:
    """Return a shard's path, such as `cams-00000-of-00032.npz`."""
    return folder / f"{name}-{index:05d}-of-{count:05d}.{suffix}"


def missing_shards(
    folder: StageFolder, name: str, examples: int, suffix: str
) -> Iterator[tuple[Path, range]]:
    """Yield this process's missing shards and their examples; show progress in examples."""
    ranges = shards(examples)
    local = range(jax.process_index(), len(ranges), jax.process_count())
    total = sum(len(ranges[i]) for i in local)
    quiet = jax.process_index() > 0
    with tqdm(total=total, desc=folder.stage, unit=" images", disable=quiet) as bar:
        for index in local:
            path = shard_path(folder.path, name, index, len(ranges), suffix)
            if not path.exists():
                yield path, ranges[index]
            bar.update(len(ranges[index]))


def write_records(path: Path, examples: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write examples, named arrays each, to one ArrayRecord file atomically."""
    with atomic_write(path) as aside:
        writer = ArrayRecordWriter(str(aside), "group_size:1")
        for example in examples:
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **example)
            writer.write(buffer.getvalue())
        writer.close()


def _open_shards(paths: Sequence[Path]) -> ArrayRecordDataSource:
    """Open shards and read their footers."""
    source = ArrayRecordDataSource([str(path) for path in paths])
    source.__len__()
    return source


def _check_shard(path: Path) -> None:
    """Check that a shard can be opened."""
    if not path.exists():
        raise CorruptFile.at(path, "gone")
    try:
        _open_shards([path])
    except (OSError, RuntimeError, ValueError) as error:
        raise CorruptFile.at(path, "cut short") from error


class RecordReader:
    """Random access to the examples of all shards of one name in a stage folder."""

    def __init__(self, folder: StageFolder, name: str) -> None:
        """Open the shards of a finished folder.

        Raises:
            CorruptFile: a shard is missing or truncated.
        """
        existing = sorted(folder.path.glob(f"{name}-*.arrayrecord"))
        count = int(existing[0].stem.rpartition("-")[2]) if existing else 1
        paths = [shard_path(folder.path, name, i, count, "arrayrecord") for i in range(count)]
        self._pattern = folder.path / f"{name}-*.arrayrecord"
        try:
            self._source = _open_shards(paths)
        except (OSError, RuntimeError, ValueError):
            for path in paths:  # one by one, to name the corrupt one
                _check_shard(path)
            raise
        self.fingerprint = folder.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex, /) -> dict[str, np.ndarray]:
        """Return one example's arrays.

        Raises:
            CorruptFile: it cannot be read.
        """
        try:
            record = self._source[int(index)]
            with _numpy_lock, np.load(io.BytesIO(record), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, RuntimeError, ValueError, BadZipFile) as error:
            raise CorruptFile.at(self._pattern, "damaged") from error
