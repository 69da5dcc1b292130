"""Read CSV files, plain or gzipped, and parse the cells that all tables share."""

import csv
import gzip
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TextIO, TypeVar

from chexseg_jax.pathologies import BLANK, NEGATIVE, OBSERVATIONS, POSITIVE, UNCERTAIN
from datasets.errors import DataError, Fault, Faults

Parsed = TypeVar("Parsed")

VIEWS: Final = ("frontal", "lateral")
SEXES: Final = ("Unknown", "Female", "Male")
PROJECTIONS: Final = ("unknown", "AP", "PA", "LL", "RL")
UNKNOWN_AGE: Final = -1

_LABELS: Final = {
    "": BLANK,
    "1": POSITIVE,
    "1.0": POSITIVE,
    "0": NEGATIVE,
    "0.0": NEGATIVE,
    "-1": UNCERTAIN,
    "-1.0": UNCERTAIN,
}
_AGE: Final = re.compile(r"([0-9]{1,3}(\.0)?)?")


def read_cells(
    table: Path, faults: Faults, parse_header: Callable[[list[str]], list[str]]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row's number (the header is 1) and its cells by column.

    Args:
        table: a CSV file, gzipped if its name ends in .gz.
        faults: what to do with a row that has another number of cells than the header.
        parse_header: names the columns; those named "" are not read.

    Raises:
        DataError: the file cannot be read or is not CSV.
    """
    csv.field_size_limit(2**24)  # reports are long
    try:
        with _open(table) as file:
            reader = csv.reader(file, strict=True)
            columns = parse_header(next(reader, []))
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(columns):
                    reason = f"{len(cells)} cells under {len(columns)} columns; restore the row"
                    faults.add(Fault(table, reader.line_num, "", reason))
                    continue
                named = zip(columns, cells, strict=True)
                yield reader.line_num, {name: cell for name, cell in named if name}
    except (csv.Error, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{table}: not a CSV file ({error}); restore it from the download"
        ) from None
    except OSError as error:
        raise DataError(f"{table}: cannot be read ({error.strerror}); check the file") from None


def parse_rows(
    table: Path,
    faults: Faults,
    parse_header: Callable[[list[str]], list[str]],
    parse: Callable[["Cells"], Parsed],
) -> Iterator[Parsed]:
    """Yield what `parse` makes of each row of `read_cells`; rows that it refuses go to `faults`."""
    for line, named in read_cells(table, faults, parse_header):
        try:
            yield parse(Cells(table, line, named))
        except Fault as fault:
            faults.add(fault)


def _open(table: Path) -> TextIO:
    if table.suffix == ".gz":
        return gzip.open(table, "rt", newline="", encoding="utf-8-sig")
    return table.open(newline="", encoding="utf-8-sig")


class Cells:
    """The cells of one row of a table, which name their place when they are refused."""

    def __init__(self, table: Path, line: int, cells: Mapping[str, str]) -> None:
        """Take the row's number and its cells by column."""
        self.table, self.line, self._cells = table, line, cells

    def __contains__(self, column: str) -> bool:
        """Return whether the table has a column."""
        return column in self._cells

    def list_once(self, image_id: str, lines: dict[str, int]) -> None:
        """Note the row of an image among the `lines` of those before.

        Raises:
            Fault: the image is listed already.
        """
        if image_id in lines:
            reason = (
                f"{image_id} is listed twice, first in row {lines[image_id]}; delete one of them"
            )
            raise Fault(self.table, self.line, "Path", reason)
        lines[image_id] = self.line

    def get(self, column: str) -> str:
        """Return a cell without blanks around it; "" if there is no such column."""
        return self._cells.get(column, "").strip()

    @property
    def path(self) -> str:
        """The column Path as it is: names of files may begin and end with blanks."""
        return self._cells["Path"]

    def refuse(self, column: str, remedy: str) -> Fault:
        """Build the fault of a cell."""
        return Fault(
            self.table, self.line, column, f"{self._cells.get(column, '')!r:.120} {remedy}"
        )

    def labels(self) -> tuple[int, ...]:
        """Parse the fourteen observations; those without a column are blank."""
        labels = []
        for name in OBSERVATIONS:
            if (cell := self.get(name)) not in _LABELS:
                raise self.refuse(name, "is not a label; write 1, 0, -1 for uncertain, or nothing")
            labels.append(_LABELS[cell])
        return tuple(labels)

    def sex(self) -> str:
        """Parse the column Sex."""
        return self.choice("Sex", SEXES) or SEXES[0]

    def age(self) -> int:
        """Parse the column Age, in years."""
        age = self.get("Age")
        if not _AGE.fullmatch(age):
            raise self.refuse("Age", "is not an age in years; write a whole number or nothing")
        return int(float(age)) if age else UNKNOWN_AGE

    def projection(self) -> str:
        """Parse the column AP/PA."""
        return self.choice("AP/PA", PROJECTIONS[1:]) or PROJECTIONS[0]

    def choice(self, column: str, known: tuple[str, ...]) -> str:
        """Return a cell that must be one of `known`, or empty."""
        cell = self.get(column)
        if cell and cell not in known:
            raise self.refuse(column, f"is not known; write one of {', '.join(known)} or nothing")
        return sys.intern(cell)
