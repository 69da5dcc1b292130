"""Radiographs from files of any kind that is read: JPEG, PNG, DICOM."""

from pathlib import Path

from chexseg_jax.radiographs.dicom import read_dicom
from chexseg_jax.radiographs.radiograph import Radiograph, RadiographError, read_picture


def read_radiograph(path: Path) -> Radiograph:
    """Returns the radiograph in a file, by what the file begins with and not by its name.

    Raises:
        RadiographError: as `read_picture` and `read_dicom`; or the file cannot be opened.
    """
    try:
        return read_dicom(path) if is_dicom(path) else read_picture(path)
    except OSError as error:
        raise RadiographError(f"{path}: cannot be read ({error.strerror or error})") from None


def is_dicom(path: Path) -> bool:
    """Returns whether a file begins as a DICOM file does."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
