"""Recognize what is often downloaded in place of a file of weights, by its first and last bytes."""

import re
import zipfile
from pathlib import Path
from typing import Final

KINDS: Final = (
    (
        rb"version https://git-lfs",
        "it is a Git LFS pointer, not the weights; fetch them with `git lfs pull`",
    ),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|!--|\?xml|[a-z]+[ >])",
        "it is an HTML or XML page, not weights; the server answered with a message (open it in a "
        "browser), so download the file itself",
    ),
    (
        rb"(\xef\xbb\xbf)?\s*[{\[]\s*[\"{\]}]",
        "it is JSON, not weights; the server answered with a message, or it is another file",
    ),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", "it is a compressed archive; unpack it first"),
    (rb"\x89HDF", "it is an HDF5 file (Keras); convert it to safetensors first"),
)
"""The patterns at the start of files that are no weights, and what they are."""


def kind_of_other_file(path: Path) -> str | None:
    """Return what a file is, and the remedy, if it is known not to be one of weights, or cut short."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "it is empty; the download was cut short, so fetch it again"
    if start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return "it is a zip archive cut short; fetch it again"
    return next((kind for pattern, kind in KINDS if re.match(pattern, start)), None)
