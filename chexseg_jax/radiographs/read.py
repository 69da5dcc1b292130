"""Read a radiograph from a JPEG, PNG or DICOM file."""

from pathlib import Path

from chexseg_jax.radiographs.dicom import read_dicom
from chexseg_jax.radiographs.radiograph import Radiograph, RadiographError, read_jpeg_or_png


def read_radiograph(path: Path) -> Radiograph:
    """Read a radiograph; the file's first bytes decide on its format, not its name.

    Raises:
        RadiographError: the file cannot be opened, or `read_jpeg_or_png` or `read_dicom` refuses it.
    """
    try:
        return read_dicom(path) if is_dicom(path) else read_jpeg_or_png(path)
    except OSError as error:
        raise RadiographError(f"{path}: cannot be read ({error.strerror or error})") from None


def is_companion(path: Path) -> bool:
    """Return whether macOS wrote a file beside another one, to hold its attributes."""
    return path.name.startswith("._") or "__MACOSX" in path.parts


def is_dicom(path: Path) -> bool:
    """Return whether a file starts with DICOM's preamble, or with data elements if it has none."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or head[:2] in (b"\x02\0", b"\x08\0")
