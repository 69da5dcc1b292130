"""Find the X-rays that files, folders and globs name, and give each an image id."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Final

from chexseg_jax.radiographs.read import is_companion
from datasets.errors import DataError

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".dcm", ".dicom")
CHEXPERT: Final = re.compile(r"(patient\d+)/(study\d+)/(view\d+_\w+)\.\w+$")


LONGEST: Final = 160
"""The longest name of a result, bytes: file systems allow 255 or fewer, with suffix and process id."""


@dataclass(frozen=True)
class InputFile:
    """An image file and the id that names its results."""

    path: Path
    image_id: str

    @property
    def stem(self) -> str:
        """The name of the image's files: its id, shortened to what a file name holds."""
        name = self.image_id.encode()
        if len(name) <= LONGEST:
            return self.image_id
        digest = hashlib.sha256(name).hexdigest()[:16]
        return f"{name[: LONGEST - 17].decode(errors='ignore')}-{digest}"


def printable(text: object) -> str:
    """Return a path, or text with paths in it, with bytes that are not UTF-8 written out."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def find_inputs(patterns: Sequence[str]) -> list[InputFile]:
    """List the files of all patterns in order, each with a unique id.

    The id of `.../patient1/study2/view1_frontal.jpg` is CheXlocalize's, `patient1_study2_view1_frontal`;
    the id of another file is its path below the given folder, without suffix, with `_` for slashes. A
    folder's files count if they have the suffix of an image; a file that is named or matched by a glob
    always counts. macOS's companions of files, `._*` and `__MACOSX`, are no images.

    Raises:
        DataError: a path is missing, no file matches, or two files would have one id.
    """
    names: dict[Path, str] = {}
    for pattern in patterns:
        for path, name in _expand(pattern):
            names.setdefault(path.resolve(), name)
    inputs, owners = [], dict[str, Path]()
    for path, name in sorted(names.items()):
        chexpert = CHEXPERT.search(path.as_posix())
        image_id = "_".join(chexpert.groups()) if chexpert else name.replace("/", "_")
        image_id = printable(image_id)
        if image_id in (".", ".."):
            raise DataError(f"{path}: its results cannot be called {image_id!r}; rename it")
        if image_id in owners:
            raise DataError(
                f"{path}: its results would be called {image_id}, as those of {owners[image_id]}; "
                "rename one, or give them to separate runs"
            )
        owners[image_id] = path
        inputs.append(InputFile(path, image_id))
    return inputs


def _expand(pattern: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of a pattern with their names below it, without suffix."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        files = [p for p in found if not is_companion(p.relative_to(path))]
        if not files:
            raise DataError(f"{path}: no file in it ends in {', '.join(SUFFIXES)}")
        for file in files:
            yield file, file.relative_to(path).as_posix().removesuffix(file.suffix)
    elif path.is_file():
        yield path, path.stem
    elif has_magic(pattern):
        matches = glob(str(path), recursive=True)  # noqa: PTH207, Path.glob takes no absolute pattern
        files = [p for p in map(Path, matches) if p.is_file() and not is_companion(p)]
        if not files:
            raise DataError(f"{pattern}: no file matches")
        for file in files:
            yield file, file.stem
    else:
        raise DataError(f"{path}: no such file or folder")
