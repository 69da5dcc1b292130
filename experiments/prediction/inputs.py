"""X-rays on disk: files, folders and globs to a list with an id each."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Final

from datasets.errors import DataError

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".dcm", ".dicom")
CHEXPERT: Final = re.compile(r"(patient\d+)/(study\d+)/(view\d+_\w+)\.\w+$")


@dataclass(frozen=True)
class InputFile:
    """A file, and what its results are called."""

    path: Path
    image_id: str


def find_inputs(patterns: Sequence[str]) -> list[InputFile]:
    """Returns the files meant, in order, each with an id of its own.

    The id of `.../patient1/study2/view1_frontal.jpg` is CheXlocalize's, `patient1_study2_view1_frontal`;
    of another file it is the path below the folder given, without suffix, slashes made `_`. In a folder
    files count that end as radiographs do; a file named or matched by a glob always counts.

    Raises:
        DataError: a path is missing, nothing was found, or two files would have one id.
    """
    found: dict[Path, str] = {}
    for pattern in patterns:
        for path, name in _meant(pattern):
            found.setdefault(path.resolve(), name)
    tasks, owners = [], dict[str, Path]()
    for path, name in sorted(found.items()):
        chexpert = CHEXPERT.search(path.as_posix())
        image_id = "_".join(chexpert.groups()) if chexpert else name.replace("/", "_")
        if image_id in (".", ".."):
            raise DataError(f"{path}: its results cannot be called {image_id!r}; rename it")
        if image_id in owners:
            raise DataError(
                f"{path}: its results would be called {image_id}, as those of {owners[image_id]}; "
                "rename one, or give them to separate runs"
            )
        owners[image_id] = path
        tasks.append(InputFile(path, image_id))
    return tasks


def _bare(path: Path) -> str:
    """Returns a path without its suffix, which may leave nothing but dots of its name."""
    return path.as_posix().removesuffix(path.suffix)


def _meant(pattern: str) -> Iterator[tuple[Path, str]]:
    """Gives files, each with its path below what was asked for."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        if not files:
            raise DataError(f"{path}: no file in it ends in {', '.join(SUFFIXES)}")
        for file in files:
            yield file, _bare(file.relative_to(path))
    elif path.is_file():
        yield path, path.stem
    elif has_magic(pattern):
        names = glob(str(path), recursive=True)  # noqa: PTH207, which takes no absolute pattern
        files = [Path(name) for name in names if Path(name).is_file()]
        if not files:
            raise DataError(f"{pattern}: no file matches")
        for file in files:
            yield file, file.stem
    else:
        raise DataError(f"{path}: no such file or folder")
