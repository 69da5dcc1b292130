"""DICOM radiographs as 8-bit grey: computed and digital radiography, one frame, upright, frontal.

Values go through the modality's rescaling, then through the first VOI look-up table or window (PS3.3,
C.11.2.1), or from least to greatest where the file has neither; MONOCHROME1 is inverted and padding is
black. What cannot be shown so without guessing is refused by name. Needs the extra `dicom`.
"""

import io
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float, UInt8

from chexseg_jax.radiographs.radiograph import (
    MAX_PIXELS,
    Radiograph,
    RadiographError,
    Spacing,
    check_size,
    content_of,
    scaled,
)

if TYPE_CHECKING:
    from pydicom import Dataset

MODALITIES: Final = ("CR", "DX")
LATERAL: Final = ("LL", "RL", "LLD", "RLD", "LATERAL")
UPRIGHT: Final = ["L", "F"]
"""A frontal chest is shown with the patient's left on the right, and feet at the bottom."""


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError:
        raise RadiographError(
            "DICOM files need a package: pip install 'chexseg-jax[dicom]'"
        ) from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it logs, with a stack, what it raises
    return pydicom


def read_dicom(path: Path) -> Radiograph:
    """Returns the radiograph in a DICOM file.

    Raises:
        RadiographError: it is damaged, or not a single upright frontal frame of grey values.
    """
    pydicom, header = _pydicom(), None
    try:
        content = content_of(path)
        _check_kind(path, _meta(content))
        header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        _check(path, header)
        dataset = pydicom.dcmread(io.BytesIO(content))
        return Radiograph(_shown(dataset)[..., None], spacing_of(header))
    except RadiographError:
        raise
    except Exception as error:  # pydicom and its decoders raise what they like on damaged files
        raise RadiographError(
            f"{path}: its pixels cannot be decoded{_stored(header)} "
            f"({type(error).__name__}: {error!s:.120}); "
            "convert it to uncompressed DICOM, or leave it out"
        ) from None


def spacing_of(dataset: "Dataset") -> Spacing | None:
    """Returns the size of pixels: in the patient if the file knows it, else at the detector."""
    for attribute in ("PixelSpacing", "ImagerPixelSpacing"):
        found = dataset.get(attribute)
        if found is None or len(found) != 2:
            continue
        if all(0 < float(side) < math.inf for side in found):
            return Spacing(float(found[0]), float(found[1]), attribute)
    return None


def _meta(content: bytes) -> "Dataset":
    """Returns the file's own header, which says how the rest is to be read."""
    from pydicom.filereader import read_dataset, read_preamble

    file = io.BytesIO(content)
    read_preamble(file, force=False)
    return read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)


def _stored(header: "Dataset | None") -> str:
    """Returns how pixels are compressed, in words, if they are and the header says so."""
    try:
        syntax = header.file_meta.TransferSyntaxUID  # type: ignore[union-attr]
        return f", stored as {syntax.name}" if syntax.is_compressed else ""
    except (AttributeError, ValueError):  # a name that is none
        return ""


def _check_kind(path: Path, meta: "Dataset") -> None:
    """Refuses deflated files, which grow a thousandfold, and DICOMDIRs, which lead elsewhere."""
    from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise RadiographError(f"{path}: it is deflated DICOM; convert it to uncompressed DICOM")
    if meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise RadiographError(f"{path}: it is a DICOMDIR, no image; give the images themselves")


def _check(path: Path, dataset: "Dataset") -> None:
    """Refuses what is no single upright frontal frame of grey values."""
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
        f"it has {dataset.get('SamplesPerPixel')} values a pixel, where grey has one; leave it out": (
            int(dataset.get("SamplesPerPixel") or 1) != 1
        ),
        f"it is rotated or mirrored (Patient Orientation {'/'.join(orientation)}); turn it to L/F": (
            bool(orientation) and orientation != UPRIGHT
        ),
        f"it is a lateral view ({dataset.get('ViewPosition')}); the network knows frontal ones": (
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
            f"{path}: {rows} x {columns} pixels of {bits} bits, where {16 * MAX_PIXELS} bits in all "
            "are read; make it smaller"
        )


def _shown(dataset: "Dataset") -> UInt8[np.ndarray, "h w"]:
    from pydicom.pixels import apply_modality_lut, apply_voi

    stored = dataset.pixel_array
    if stored.ndim != 2:  # pydicom takes pixels enough for several frames to be several
        raise ValueError(f"the pixels make an array of shape {stored.shape}, no single frame")
    padding = _padding(stored, dataset)
    values = np.asarray(apply_modality_lut(stored, dataset))
    if not np.isfinite(values).all():
        raise ValueError("rescaled values that are not finite")
    if dataset.get("VOILUTSequence"):
        table = dataset.VOILUTSequence[0]
        bits = int(table.LUTDescriptor[2])
        grey = _levels(np.asarray(apply_voi(values.astype(stored.dtype), dataset, index=0)), bits)
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        grey = _windowed(values.astype(np.float64), dataset)
    else:
        kept = values[~padding]
        grey = scaled(np.where(padding, kept.min() if kept.size else 0, values))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    return np.where(padding, np.uint8(0), grey)


def _levels(values: np.ndarray, bits: int) -> UInt8[np.ndarray, "h w"]:
    return np.rint(values * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)


def _windowed(values: Float[np.ndarray, "h w"], dataset: "Dataset") -> UInt8[np.ndarray, "h w"]:
    """Returns values through the first window: black below, white above, as its function has it."""
    from pydicom.multival import MultiValue

    def first(value: Any) -> float:
        return float(value[0] if isinstance(value, MultiValue) else value)

    centre, width = first(dataset.WindowCenter), first(dataset.WindowWidth)
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if not (width >= (1 if function == "LINEAR" else 1e-12) and math.isfinite(centre + width)):
        raise ValueError(f"a window {width} wide about {centre}")
    match function:
        case "LINEAR":
            shares = (values - (centre - 0.5)) / max(width - 1, 1e-12) + 0.5
        case "LINEAR_EXACT":
            shares = (values - centre) / width + 0.5
        case "SIGMOID":
            shares = 1 / (1 + np.exp(-4 * (values - centre) / width))
        case _:
            raise ValueError(f"VOI LUT function {function:.20}")
    return np.rint(255 * shares.clip(0, 1)).astype(np.uint8)


def _padding(stored: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Returns which pixels are padding."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    ends = sorted((int(value), int(dataset.get("PixelPaddingRangeLimit", value))))
    return (stored >= ends[0]) & (stored <= ends[1])
