"""Radiographs as 8-bit gray images: types, limits of size, and JPEG and PNG files.

Sizes are read from the header and checked before any pixel is decoded. A PNG of 16 bits does not state
how many of them it uses, and is scaled from its minimum to its maximum.
"""

import io
import re
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, UnidentifiedImageError

MAX_PIXELS: Final = 2**27
"""The largest radiograph that is decoded: twice the largest detector in use."""
MAX_BYTES: Final = 2**30
"""The largest file that is read: twice the largest radiograph at four bytes a pixel."""
ORIENTATION: Final = 0x0112
"""The EXIF tag of the orientation: 1 is upright, 2 to 8 are turned or mirrored, others mean nothing."""
LUMA: Final = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601), as Pillow's for 8 bits."""
IHDR: Final = slice(12, 33)
"""The place of a PNG's first chunk: its name, thirteen bytes of data and its checksum."""


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
    """A gray image, and its pixel spacing if the file states it."""

    image: UInt8[np.ndarray, "h w 1"]
    spacing: Spacing | None = None


def read_jpeg_or_png(path: Path) -> Radiograph:
    """Read the radiograph in a JPEG or PNG file.

    Raises:
        RadiographError: it is neither, is corrupt, too large, or not upright according to EXIF.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            content = io.BytesIO(read_content(path))
            with Image.open(content, formats=["JPEG", "PNG"]) as file:
                check_size(path, file.height, file.width)
                stored = str(file.tile[0].args) if file.tile else ""  # reading EXIF decodes a PNG
                orientation = file.getexif().get(ORIENTATION, 1)
                if orientation in range(2, 9):
                    raise RadiographError(
                        f"{path}: its EXIF header asks for a rotation ({orientation}); save it upright"
                    )
                if file.mode in ("I;16", "I;16B", "I"):
                    image = scale_to_uint8(np.asarray(file).astype(np.int32))
                elif stored.endswith(";16B"):
                    image = scale_to_uint8(_sixteen_bits(content.getvalue(), stored))
                else:
                    image = np.asarray(file.convert("L"))
                return Radiograph(image[..., None])
    except Image.DecompressionBombError:
        raise RadiographError(f"{path}: more than {MAX_PIXELS} pixels; make it smaller") from None
    except RadiographError:
        raise
    except UnidentifiedImageError:
        raise RadiographError(
            f"{path}: no readable JPEG, PNG or DICOM file; convert it to one, or leave it out"
        ) from None
    except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error
        raise RadiographError(
            f"{path}: no readable JPEG, PNG or DICOM file ({error_text(error)}); "
            "it is damaged: get it anew or leave it out"
        ) from None


def _sixteen_bits(png: bytes, stored: str) -> Shaped[np.ndarray, "h w"]:
    """Decode a 16-bit PNG with colors or opacity, of which Pillow keeps the high bytes, as gray.

    Gray with opacity is four bytes a pixel, as 8-bit RGBA is: a header that says so yields all bytes.
    Of RGB and RGBA, Pillow's reader of little-endian samples yields the low bytes.
    """
    if stored == "LA;16B":
        width_height, rest = png[16:24], png[26:29]
        chunk = b"IHDR" + width_height + b"\x08\x06" + rest
        png = png[: IHDR.start] + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[IHDR.stop :]
        pixels = np.asarray(Image.open(io.BytesIO(png))).astype(np.int32)
        return pixels[..., 0] << 8 | pixels[..., 1]
    high, low = (Image.open(io.BytesIO(png)) for _ in range(2))
    low.tile = [low.tile[0]._replace(args=stored.replace("16B", "16L"))]
    values = np.asarray(high)[..., :3].astype(np.int32) << 8 | np.asarray(low)[..., :3]
    return values @ np.array(LUMA)


def error_text(error: Exception) -> str:
    """Return an error's type and message on one short line, without objects' addresses."""
    message = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", str(error))
    return f"{type(error).__name__}: {' '.join(message.split()):.120}".removesuffix(": ")


def read_content(path: Path) -> bytes:
    """Read a whole file, for decoders to work on bytes instead of the file.

    A decoder that reads a file allocates as many bytes as the file claims to hold.
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
    """Refuse empty images and images too large to decode."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise RadiographError(
            f"{path}: {height} x {width} pixels, where 1 to {MAX_PIXELS} are read; make it smaller"
        )


def scale_to_uint8(values: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Scale the minimum to 0 and the maximum to 255; a constant image becomes black."""
    low, high = float(values.min()), float(values.max())
    return np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
