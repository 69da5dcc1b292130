"""Radiographs as 8-bit grey, and JPEG and PNG files of them.

Sizes are read from the header and refused before a pixel is decoded. A PNG of 16 bits does not say how
many of them it uses, and is scaled from its least value to its greatest.
"""

import io
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

MAX_PIXELS: Final = 2**27
"""The largest radiograph that is decoded: twice the largest detector in use."""
MAX_BYTES: Final = 2**30
"""The largest file that is read: the largest radiograph in four bytes a pixel, twice over."""
ORIENTATION: Final = 0x0112
"""EXIF's tag."""


class RadiographError(ValueError):
    """A file that cannot be used as a frontal chest X-ray."""


@dataclass(frozen=True)
class Spacing:
    """The distance between rows and between columns, mm, and the DICOM attribute that states it."""

    rows: float
    columns: float
    attribute: str


@dataclass(frozen=True)
class Radiograph:
    """A radiograph, and its pixels' size where the file says."""

    image: UInt8[np.ndarray, "h w 1"]
    spacing: Spacing | None = None


def read_picture(path: Path) -> Radiograph:
    """Returns the radiograph in a JPEG or PNG file.

    Raises:
        RadiographError: it is neither, is damaged, too large, or not upright by its header.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            content = io.BytesIO(content_of(path))
            with Image.open(content, formats=["JPEG", "PNG"]) as picture:
                check_size(path, picture.height, picture.width)
                turned = picture.getexif().get(ORIENTATION, 1)
                if turned != 1:
                    raise RadiographError(
                        f"{path}: its EXIF header asks for a rotation ({turned}); save it upright"
                    )
                if picture.mode in ("I;16", "I;16B", "I"):
                    return Radiograph(scaled(np.asarray(picture).astype(np.int32))[..., None])
                return Radiograph(np.asarray(picture.convert("L"))[..., None])
    except Image.DecompressionBombError:
        raise RadiographError(f"{path}: more than {MAX_PIXELS} pixels; make it smaller") from None
    except RadiographError:
        raise
    except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error
        raise RadiographError(
            f"{path}: no readable JPEG, PNG or DICOM file ({type(error).__name__}: {error!s:.80}); "
            "convert it or leave it out"
        ) from None


def content_of(path: Path) -> bytes:
    """Returns a file's bytes, which decoders are given in its stead.

    They ask a file for as many bytes as it claims to have, and take memory for all of them.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise RadiographError(f"{path}: is not a file; give files")
    if status.st_size > MAX_BYTES:
        raise RadiographError(
            f"{path}: {status.st_size} bytes exceed the limit of {MAX_BYTES}; make it smaller"
        )
    return path.read_bytes()


def check_size(path: Path, height: int, width: int) -> None:
    """Checks that an image is not too large to be decoded."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise RadiographError(
            f"{path}: {height} x {width} pixels, where 1 to {MAX_PIXELS} are read; make it smaller"
        )


def scaled(values: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Returns values from their least, black, to their greatest, white; all black if they are one."""
    low, high = float(values.min()), float(values.max())
    return np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
