"""What a prediction has done so far: one JSON object a line, so that a stopped one goes on.

A line is written once an image's files are; a last line cut short is dropped. A file that changes size
or date is done again, and so is one that could not be used.
"""

import json
import os
from pathlib import Path
from typing import Any

from chexseg_jax.runtime.atomic_write import explain_write_errors
from chexseg_jax.runtime.stage_folder import digest, digest_file
from datasets.errors import DataError
from experiments.prediction.inputs import InputFile


class ProgressJournal:
    """The journal of one output folder."""

    def __init__(self, folder: Path, model: Path, **wanted: bool) -> None:
        """Opens the folder, making it if need be.

        Raises:
            DataError: it holds another model's results, or has other files in it.
        """
        self.fingerprint = digest([digest_file(model / "config.json"), wanted])
        self._path = folder / "journal.jsonl"
        if folder.exists() and any(folder.iterdir()) and not self._path.exists():
            raise DataError(f"{folder}: --out has other files in it; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._done: dict[str, tuple[int, int]] = {}  # where a line starts, by id
        self._seen: dict[str, list[Any]] = {}
        self._failures: dict[str, str] = {}
        end = self._read()
        self._file = self._path.open("r+b" if self._path.exists() else "x+b")
        self._file.truncate(end)
        self._file.seek(end)
        if end == 0:
            self._write({"model": self.fingerprint})

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._file.close()

    def _read(self) -> int:
        """Returns how many bytes of the file are whole lines."""
        end = 0
        if not self._path.exists():
            return end
        with self._path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    row = None
                if row is None:
                    break
                if end == 0 and row.get("model") != self.fingerprint:
                    raise DataError(
                        f"{self._path.parent}: holds the results of another model or of other flags; "
                        "choose another --out"
                    )
                if "image_id" in row:
                    self._done[row["image_id"]] = (end, len(line))
                    self._seen[row["image_id"]] = row["file"]
                end += len(line)
        return end

    def _write(self, row: dict[str, Any]) -> None:
        with explain_write_errors(self._path):
            self._file.write(json.dumps(row).encode() + b"\n")

    def missing(self, tasks: list[InputFile]) -> list[InputFile]:
        """Returns the tasks that are not done, or whose files have changed."""
        return [task for task in tasks if self._seen.get(task.image_id) != _stamp(task.path)]

    def done(self, task: InputFile, row: dict[str, Any]) -> None:
        """Notes a result."""
        self._file.seek(0, os.SEEK_END)
        start = self._file.tell()
        self._write({"image_id": task.image_id, "file": _stamp(task.path), **row})
        self._done[task.image_id] = (start, self._file.tell() - start)
        self._failures.pop(task.image_id, None)

    def failed(self, task: InputFile, reason: str) -> None:
        """Notes that a file could not be used; the next run tries it again."""
        self._done.pop(task.image_id, None)
        self._failures[task.image_id] = reason

    def flush(self) -> None:
        """Brings the notes to disk."""
        with explain_write_errors(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def failure(self, task: InputFile) -> str | None:
        """Returns why a task failed in this run, if it did."""
        return self._failures.get(task.image_id)

    def row(self, task: InputFile) -> dict[str, Any]:
        """Returns a task's result, read from disk: memory holds none of them."""
        start, length = self._done[task.image_id]
        self._file.seek(start)
        return json.loads(self._file.read(length))


def _stamp(path: Path) -> list[Any]:
    """Returns what tells a file from a later one in its place."""
    try:
        stat = path.stat()
    except OSError:
        return [str(path), 0, 0]
    return [str(path), stat.st_size, stat.st_mtime_ns]
