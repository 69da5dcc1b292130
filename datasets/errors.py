"""The errors of all data preparation, and what is done about faults in single rows and files."""

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from chexseg_jax.runtime.atomic_write import atomic_write

FaultPolicy = Literal["stop", "list", "skip"]
FAULT_SHARE: Final = 0.01
FAULTS_ALLOWED: Final = 10
"""Without another limit, this share of the rows may be skipped, and in any case this many."""


class DataError(ValueError):
    """Invalid input or missing data; the message says where, what, and the remedy."""


class Fault(DataError):
    """A fault of one row, image or mask, which can be listed or skipped without the others."""

    def __init__(
        self, file: str | Path, row: int | str, column: str, reason: str, table: str = ""
    ) -> None:
        """Take a table, an image or a file of masks; `row` is a number, or an image id in masks."""
        super().__init__(str(file), row, column, reason, table)

    def __str__(self) -> str:
        file, row, column, reason, table = self.args
        place = f"row {row}" if isinstance(row, int) else row
        place += f", column {column}" if column else ""
        return f"{file} ({table}, {place}): {reason}" if table else f"{file}, {place}: {reason}"


@dataclass
class Faults:
    """Faults so far: `stop` raises the first, `list` keeps all, `skip` keeps them up to a limit.

    Attributes:
        limit: number of faults, or their share of all rows if below 1, up to which `skip` goes on;
            by default `FAULT_SHARE` and at least `FAULTS_ALLOWED`.
        rows: number of rows in all tables, once they are read.
        left_out: ids of images whose row or file has a fault.
    """

    policy: FaultPolicy = "stop"
    limit: float | None = None
    rows: int = 0
    found: list[DataError] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)
    _seen: set[tuple[object, ...]] = field(default_factory=set)

    def add(self, fault: DataError, image_id: str = "") -> None:
        """Note the fault of one row, which is left out; under `stop`, raise it."""
        if self.policy == "stop":
            raise fault
        if fault.args in self._seen:  # of an image that is in two data sets
            return
        self._seen.add(fault.args)
        self.found.append(fault)
        self.left_out.add(image_id)
        self.check()

    def stop(self, error: DataError) -> None:
        """Raise an error without whose remedy nothing goes on, unless all are to be listed."""
        if self.policy != "list":
            raise error
        self.found.append(error)

    def check(self) -> None:
        """Raise DataError if more rows are skipped than the limit allows."""
        limit = self.limit
        if limit is None:
            limit = max(FAULTS_ALLOWED, FAULT_SHARE * self.rows)
        elif limit < 1:
            limit *= self.rows
        if self.policy == "skip" and self.rows and len(self.found) > limit:
            raise DataError(
                f"{len(self.found)} faults in {self.rows} rows exceed the limit of {limit:g}; list "
                f"them with --on-fault list, or raise --fault-limit; the first is {self.found[0]}"
            )

    def write(self, path: Path) -> None:
        """Write the faults as a CSV file: file, row, column, reason, and an image's table."""
        with atomic_write(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["file", "row", "column", "reason", "table"])
            for error in self.found:
                cells = error.args if isinstance(error, Fault) else ("", "", "", str(error), "")
                table.writerow(cells)
