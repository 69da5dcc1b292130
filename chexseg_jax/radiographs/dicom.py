"""Read DICOM radiographs as 8-bit gray images: one upright frontal frame of CR or DX.

Pixels go through the modality LUT, then through the first VOI LUT or window (PS3.3, C.11.2.1), or are
scaled from minimum to maximum where the file has neither; MONOCHROME1 is inverted and padding is black.
A file that can only be displayed by guessing is refused with the reason. Needs the extra `dicom`.
"""

import io
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from chexseg_jax.radiographs.radiograph import (
    MAX_PIXELS,
    Radiograph,
    RadiographError,
    Spacing,
    check_size,
    read_content,
    scale_to_uint8,
)

if TYPE_CHECKING:
    from pydicom import Dataset

MODALITIES: Final = ("CR", "DX")
LATERAL: Final = ("LL", "RL", "LLD", "RLD", "LATERAL")
UPRIGHT: Final = ["L", "F"]
"""Patient Orientation of a frontal view: the patient's left on the right, feet at the bottom."""
WINDOW: Final = ("WindowCenter", "WindowWidth", "VOILUTFunction")


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError:
        raise RadiographError(
            "DICOM files need a package: pip install 'chexseg-jax[dicom]'"
        ) from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it also logs what it raises
    return pydicom


def read_dicom(path: Path) -> Radiograph:
    """Read the radiograph in a DICOM file.

    Raises:
        RadiographError: it is corrupt, or not a single upright frontal gray frame.
    """
    pydicom, header = _pydicom(), None
    try:
        content = read_content(path)
        _check_kind(path, _file_meta(content))
        header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        _check_header(path, header)
        dataset = pydicom.dcmread(io.BytesIO(content))
        return Radiograph(_to_gray(dataset)[..., None], pixel_spacing(header))
    except RadiographError:
        raise
    except Exception as error:  # pydicom and its decoders raise any type on corrupt files
        raise RadiographError(
            f"{path}: its pixels cannot be decoded{_compression(header)} "
            f"({type(error).__name__}: {error!s:.120}); "
            "convert it to uncompressed DICOM, or leave it out"
        ) from None


def pixel_spacing(dataset: "Dataset") -> Spacing | None:
    """Return the pixel spacing: in the patient if the file states it, else at the detector."""
    for attribute in ("PixelSpacing", "ImagerPixelSpacing"):
        sides = dataset.get(attribute)
        if sides is None or len(sides) != 2:
            continue
        if all(0 < float(side) < math.inf for side in sides):
            return Spacing(float(sides[0]), float(sides[1]), attribute)
    return None


def _file_meta(content: bytes) -> "Dataset":
    """Read only the file meta information, which names the transfer syntax."""
    from pydicom.filereader import read_dataset, read_preamble

    file = io.BytesIO(content)
    read_preamble(file, force=False)
    return read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)


def _compression(header: "Dataset | None") -> str:
    """Name the compression of the pixels for an error message; empty if there is none."""
    try:
        syntax = header.file_meta.TransferSyntaxUID  # type: ignore[union-attr]
        return f", stored as {syntax.name}" if syntax.is_compressed else ""
    except (AttributeError, ValueError):  # no header, or an invalid UID
        return ""


def _check_kind(path: Path, meta: "Dataset") -> None:
    """Refuse deflated files, which can expand a thousandfold, and DICOMDIRs, which hold no image."""
    from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise RadiographError(f"{path}: it is deflated DICOM; convert it to uncompressed DICOM")
    if meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise RadiographError(f"{path}: it is a DICOMDIR, no image; give the images themselves")


def _check_header(path: Path, dataset: "Dataset") -> None:
    """Refuse anything but a single upright frontal gray frame of a reasonable size."""
    orientation = [str(side) for side in dataset.get("PatientOrientation") or []]
    photometric = dataset.get("PhotometricInterpretation")
    refusals = {
        f"its modality is {dataset.get('Modality')}; only CR and DX are read": (
            dataset.get("Modality") not in MODALITIES
        ),
        f"it has {dataset.get('NumberOfFrames')} frames; give single images": (
            int(dataset.get("NumberOfFrames") or 1) != 1
        ),
        f"its pixels are {photometric}; only MONOCHROME1 and MONOCHROME2 are read": (
            photometric not in ("MONOCHROME1", "MONOCHROME2")
        ),
        f"it has {dataset.get('SamplesPerPixel')} values a pixel, where gray has one; leave it out": (
            int(dataset.get("SamplesPerPixel") or 1) != 1
        ),
        f"it is rotated or mirrored (Patient Orientation {'/'.join(orientation)}); turn it to L/F": (
            bool(orientation) and orientation != UPRIGHT
        ),
        f"it is a lateral view ({dataset.get('ViewPosition')}); networks are trained on frontal ones": (
            dataset.get("ViewPosition") in LATERAL
        ),
        "it has no Rows or Columns; leave it out": "Rows" not in dataset
        or "Columns" not in dataset,
    }
    for reason, refused in refusals.items():
        if refused:
            raise RadiographError(f"{path}: {reason}")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    check_size(path, rows, columns)
    bits = int(dataset.get("BitsAllocated") or 8)
    if not 0 < rows * columns * bits <= 16 * MAX_PIXELS:
        raise RadiographError(
            f"{path}: {rows} x {columns} pixels of {bits} bits exceed the limit of "
            f"{16 * MAX_PIXELS} bits in all; make it smaller"
        )


def _to_gray(dataset: "Dataset") -> UInt8[np.ndarray, "h w"]:
    from pydicom.pixels import apply_modality_lut, apply_voi

    stored = dataset.pixel_array
    if stored.ndim != 2:  # pydicom reads surplus pixels as further frames
        raise ValueError(f"the pixels make an array of shape {stored.shape}, no single frame")
    padding = _padding(stored, dataset)
    values = np.asarray(apply_modality_lut(stored, dataset))
    if not np.isfinite(values).all():
        raise ValueError("rescaled values that are not finite")
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        levels = np.asarray(apply_voi(values.astype(stored.dtype), dataset, index=0))
        gray = np.rint(levels * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        gray = _apply_window(values, dataset)
    else:
        inside = values[~padding]
        gray = scale_to_uint8(np.where(padding, inside.min() if inside.size else 0, values))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        gray = 255 - gray
    return np.where(padding, np.uint8(0), gray)


def _apply_window(
    values: Shaped[np.ndarray, "h w"], dataset: "Dataset"
) -> UInt8[np.ndarray, "h w"]:
    """Apply the first window to rescaled values, with 0-255 as its output range."""
    from pydicom import Dataset
    from pydicom.pixels import apply_windowing

    # pydicom's output range is that of the stored pixels: a header of 8 unsigned bits makes it 0-255.
    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.BitsStored, window.PixelRepresentation = 8, 0
    for name in WINDOW:
        if dataset.get(name) not in (None, ""):
            window[name] = dataset[name]
    center, width = (float(np.ravel(window[name].value)[0]) for name in WINDOW[:2])
    narrowest = 1 if window.get("VOILUTFunction", "LINEAR") == "LINEAR" else 1e-12
    if not (width >= narrowest and math.isfinite(center + width)):
        raise ValueError(f"a window {width} wide about {center}")
    return np.rint(apply_windowing(values, window)).astype(np.uint8)


def _padding(stored: Shaped[np.ndarray, "h w"], dataset: "Dataset") -> Bool[np.ndarray, "h w"]:
    """Mark the padding pixels."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    low, high = sorted((int(value), int(dataset.get("PixelPaddingRangeLimit", value))))
    return (stored >= low) & (stored <= high)
