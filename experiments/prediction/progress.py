"""Journal of a prediction, from which a stopped run resumes: JSON lines, one per image.

A line is written after the image's files; an incomplete last line is dropped. A file whose size or date
changes is predicted again, and so is a file that could not be used or lacks a result.
"""

import json
import os
from pathlib import Path
from typing import Any, Self

from chexseg_jax.runtime.atomic_write import explain_write_errors
from chexseg_jax.runtime.stage_folder import digest, digest_file
from datasets.errors import DataError
from experiments.prediction.inputs import InputFile


class ProgressJournal:
    """The journal of an output folder."""

    def __init__(self, folder: Path, model: Path, **options: bool) -> None:
        """Open the folder, and create it if it is missing.

        Raises:
            DataError: it holds results of another model or of other options, or other files.
        """
        self.fingerprint = digest([digest_file(model / "config.json"), options])
        self._path = folder / "journal.jsonl"
        if folder.exists() and any(folder.iterdir()) and not self._path.exists():
            raise DataError(f"{folder}: --out has other files in it; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._lines: dict[str, tuple[int, int]] = {}  # offset and length by image id
        self._stamps: dict[str, list[Any] | None] = {}
        self._failures: dict[str, str] = {}
        end = self._read()
        self._file = self._path.open("r+b" if self._path.exists() else "x+b")
        self._file.truncate(end)
        self._file.seek(end)
        if end == 0:
            self._write({"model": self.fingerprint})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._file.close()

    def _read(self) -> int:
        """Read the complete lines, and return their length in bytes."""
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
                    self._lines[row["image_id"]] = (end, len(line))
                    self._stamps[row["image_id"]] = None if row.get("fault") else row["file"]
                end += len(line)
        return end

    def _write(self, row: dict[str, Any]) -> None:
        with explain_write_errors(self._path):
            self._file.write(json.dumps(row).encode() + b"\n")

    def pending(self, inputs: list[InputFile]) -> list[InputFile]:
        """Return the files that have no result, or have changed since."""
        return [file for file in inputs if self._stamps.get(file.image_id) != _stamp(file.path)]

    def record(self, file: InputFile, result: dict[str, Any]) -> None:
        """Append the result of a file; its `fault` says what of it could not be written."""
        self._file.seek(0, os.SEEK_END)
        start = self._file.tell()
        self._write({"image_id": file.image_id, "file": _stamp(file.path), **result})
        self._lines[file.image_id] = (start, self._file.tell() - start)
        self._failures.pop(file.image_id, None)
        if fault := result.get("fault"):
            self._failures[file.image_id] = fault

    def record_failure(self, file: InputFile, reason: str) -> None:
        """Note that a file could not be used; the next run tries it again."""
        self._lines.pop(file.image_id, None)
        self._failures[file.image_id] = reason

    def flush(self) -> None:
        """Write all lines to the disk."""
        with explain_write_errors(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def failure(self, file: InputFile) -> str | None:
        """Return why a file, or one of its results, failed in this run, None if nothing did."""
        return self._failures.get(file.image_id)

    def has_result(self, file: InputFile) -> bool:
        """Return whether a file was predicted."""
        return file.image_id in self._lines

    def result(self, file: InputFile) -> dict[str, Any]:
        """Read the result of a file from the disk; none is kept in memory."""
        start, length = self._lines[file.image_id]
        self._file.seek(start)
        return json.loads(self._file.read(length))


def _stamp(path: Path) -> list[Any]:
    """Return path, size and date of a file, which change when it is replaced."""
    try:
        stat = path.stat()
    except OSError:
        return [str(path), 0, 0]
    return [str(path), stat.st_size, stat.st_mtime_ns]
