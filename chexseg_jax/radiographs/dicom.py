"""Read DICOM radiographs as 8-bit gray images: one upright frontal frame of CR or DX.

Pixels go through the modality LUT, then through the first VOI LUT or window (PS3.3, C.11.2.1), or are
scaled from minimum to maximum where the file has neither; MONOCHROME1 is inverted and padding is black.
A file that can only be displayed by guessing is refused with the reason. Needs the extra `dicom`.
"""

import io
import logging
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt8, UInt16

from chexseg_jax.radiographs.radiograph import (
    MAX_PIXELS,
    Radiograph,
    RadiographError,
    Spacing,
    check_size,
    error_text,
    read_content,
    scale_to_uint8,
)

if TYPE_CHECKING:
    from pydicom import Dataset

MODALITIES: Final = ("CR", "DX")
SOP_CLASSES: Final = {
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "DX",
}
"""The modality of a SOP class, for files that state none."""
FOR_PROCESSING: Final = "1.2.840.10008.5.1.4.1.1.1.1.1"
SHAPES: Final = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}
"""The Presentation LUT Shape that agrees with a photometric interpretation (PS3.3, C.8.11.3)."""
SIDEWAYS: Final = {"LL", "RL", "LAO", "RAO", "LPO", "RPO", "LLO", "RLO", "OBLIQUE"}
"""Words of lateral and oblique views, beside those that start with LAT."""
DECUBITUS: Final = {"LLD", "RLD"}
"""Words of views of a lying patient, which are frontal if AP or PA is said too."""
FUNCTIONS: Final = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
UPRIGHT: Final = ["L", "F"]
"""Patient Orientation of a frontal view: the patient's left on the right, feet at the bottom."""


class _Refused(Exception):
    """The reason of a refusal, which `read_dicom` puts after the file's name."""


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
        _check_kind(_file_meta(content))
        header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, force=True)
        _check_header(path, header)
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        if not dataset.get("PixelData"):
            raise _Refused("it holds no pixels; leave it out")
        return Radiograph(_to_gray(dataset)[..., None], pixel_spacing(header))
    except RadiographError:
        raise
    except _Refused as reason:
        raise RadiographError(f"{path}: {reason}") from None
    except Exception as error:  # pydicom and its decoders raise any type on corrupt files
        raise RadiographError(f"{path}: its pixels {_decoding_fault(header, error)}") from None


def read_header(path: Path) -> "Dataset":
    """Read a DICOM file's data set without its pixels, from a file that `read_dicom` has read."""
    return _pydicom().dcmread(path, stop_before_pixels=True, force=True)


def sop_class(dataset: "Dataset") -> str:
    """Return the SOP class UID of a data set, or of its file; empty if neither states one."""
    meta = getattr(dataset, "file_meta", {})
    return str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")


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
    read_preamble(file, force=True)
    return read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)


def _decoding_fault(header: "Dataset | None", error: Exception) -> str:
    """Say why pixels cannot be decoded, by which compression, and the remedy."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    syntax = None if header is None else header.file_meta.TransferSyntaxUID
    if syntax is None or not syntax.is_transfer_syntax or not syntax.is_compressed:
        return (
            f"cannot be decoded ({error_text(error)}); it is damaged: get it anew or leave it out"
        )
    remedy = "convert it to uncompressed DICOM, or leave it out"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return f"cannot be decoded, stored as {syntax.name}; {remedy}"
    missing = [text for text in decoder.missing_dependencies if text.startswith("pylibjpeg")]
    # Pillow is a decoder of the extended process, but only for 8 bits.
    if missing and (not decoder.is_available or syntax == JPEGExtended12Bit):
        packages = " ".join(map(repr, re.findall(r"[\w-]+>=[\w.]+", missing[0])))
        return (
            f"are stored as {syntax.name}, for which a decoder is missing; pip install {packages}, "
            f"or {remedy}"
        )
    return f"cannot be decoded, stored as {syntax.name} ({error_text(error)}); {remedy}"


def _check_kind(meta: "Dataset") -> None:
    """Refuse deflated files, which can expand a thousandfold, and what holds no image."""
    from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise _Refused("it is deflated DICOM; convert it to uncompressed DICOM")
    if meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise _Refused("it is a DICOMDIR, no image; give the images themselves")
    if not meta.get("TransferSyntaxUID"):
        raise _Refused(
            "it is DICOM without a transfer syntax, so how its data are written is unknown; "
            "export it anew as a DICOM file"
        )


def _word(dataset: "Dataset", keyword: str) -> str:
    """Return an attribute as upper-case text, empty if the data set lacks it."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip().upper()


def _view(dataset: "Dataset") -> str:
    """Return the view's name, or what its code means."""
    codes = dataset.get("ViewCodeSequence") or [{}]
    return _word(dataset, "ViewPosition") or str(codes[0].get("CodeMeaning") or "").upper()


def _is_sideways(view: str) -> bool:
    """Return whether a view's name says that it is not frontal."""
    words = set(re.findall("[A-Z]+", view))
    lying = words & DECUBITUS and not words & {"AP", "PA"}
    return bool(lying or words & SIDEWAYS or any(word.startswith("LAT") for word in words))


def _check_header(path: Path, dataset: "Dataset") -> None:
    """Refuse anything but a single upright frontal gray frame of a reasonable size."""
    orientation = [str(side) for side in dataset.get("PatientOrientation") or []]
    photometric, shape = _word(dataset, "PhotometricInterpretation"), "PresentationLUTShape"
    kind, view = sop_class(dataset), _view(dataset)
    modality = _word(dataset, "Modality") or SOP_CLASSES.get(kind)
    stored, high = dataset.get("BitsStored"), dataset.get("HighBit")
    refusals = {
        f"its modality is {modality}; only CR and DX are read": (
            modality is not None and modality not in MODALITIES
        ),
        f"it states no modality, and its SOP class ({kind or 'none'}) is not that of CR or DX; "
        "leave it out": modality is None,
        "it is FOR PROCESSING, a detector's values before any display; give the image FOR "
        "PRESENTATION": (
            kind == FOR_PROCESSING or _word(dataset, "PresentationIntentType") == "FOR PROCESSING"
        ),
        f"it has {dataset.get('NumberOfFrames')} frames; give single images": (
            int(dataset.get("NumberOfFrames") or 1) != 1
        ),
        f"its pixels are {photometric or 'of no stated kind'}; only MONOCHROME1 and MONOCHROME2 are "
        "read": photometric not in SHAPES,
        f"it is {photometric} with the Presentation LUT Shape {dataset.get(shape)}, so black and white "
        "may be exchanged; correct one of them": (
            _word(dataset, shape) not in ("", SHAPES.get(photometric))
        ),
        f"its high bit is {high} of {stored} bits stored, so the place of its values is unknown; "
        "convert it, or leave it out": None not in (stored, high) and high != stored - 1,
        f"it has {dataset.get('SamplesPerPixel')} values a pixel, where gray has one; leave it out": (
            int(dataset.get("SamplesPerPixel") or 1) != 1
        ),
        f"it is rotated or mirrored (Patient Orientation {'/'.join(orientation)}); turn it to L/F": (
            bool(orientation) and orientation != UPRIGHT
        ),
        f"it is a lateral view ({view}); networks are trained on frontal ones": _is_sideways(view),
        "it has no Rows or Columns; leave it out": "Rows" not in dataset
        or "Columns" not in dataset,
    }
    for reason, refused in refusals.items():
        if refused:
            raise _Refused(reason)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    check_size(path, rows, columns)
    bits = int(dataset.get("BitsAllocated") or 8)
    if not 0 < rows * columns * bits <= 16 * MAX_PIXELS:
        raise _Refused(
            f"{rows} x {columns} pixels of {bits} bits exceed the limit of "
            f"{16 * MAX_PIXELS} bits in all; make it smaller"
        )


def _to_gray(dataset: "Dataset") -> UInt8[np.ndarray, "h w"]:
    from pydicom.pixels import apply_rescale

    stored = dataset.pixel_array
    if stored.ndim != 2:  # pydicom reads surplus pixels as further frames
        raise ValueError(f"the pixels make an array of shape {stored.shape}, no single frame")
    padding = _padding(stored, dataset)
    inside = ~padding if padding.any() and not padding.all() else np.ones_like(padding)
    bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation") or 0)
    ends = np.array([0, 2**bits - 1]) - signed * 2 ** (bits - 1)
    if dataset.get("ModalityLUTSequence"):
        values, reach = _look_up(stored, inside, ends, dataset, "ModalityLUTSequence")
        ends = np.array([reach.min(), reach.max()])
    else:
        values, ends = (np.asarray(apply_rescale(array, dataset)) for array in (stored, ends))
    if not np.isfinite(values).all():
        raise ValueError("rescaled values that are not finite")
    if dataset.get("VOILUTSequence"):
        levels, reach = _look_up(values, inside, ends, dataset, "VOILUTSequence")
        low, high = int(reach.min()), int(reach.max())
        if low == high:
            raise _Refused("its VOI LUT shows every value alike; delete it, or leave the file out")
        gray = np.rint((levels - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        gray = _apply_window(values, dataset)
    else:
        gray = scale_to_uint8(np.where(inside, values, values[inside].min()))
    if _word(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        gray = 255 - gray
    return np.where(padding, np.uint8(0), gray)


def _look_up(
    values: Shaped[np.ndarray, "h w"],
    inside: Bool[np.ndarray, "h w"],
    ends: Shaped[np.ndarray, "2"],
    dataset: "Dataset",
    sequence: str,
) -> tuple[Int[np.ndarray, "h w"], Int[np.ndarray, "n"]]:
    """Return each value's entry in the first look-up table of a sequence.

    Also returns the entries within reach of the values that the file can hold, `ends` and between.

    Writers fill in the descriptor carelessly: its number of bits is ignored, two entries to a word are
    known by the length of the data, and the first value, 16 bits without a sign, is the one of its two
    readings that fits the values better.
    """
    item, name = dataset[sequence][0], sequence.removesuffix("Sequence").replace("LUT", " LUT")
    if not item.get("LUTDescriptor") or not item.get("LUTData"):
        raise _Refused(f"its {name} is empty; delete it, or leave the file out")
    little = dataset.original_encoding[1] is not False
    descriptor, table = (_words(item[key], little) for key in ("LUTDescriptor", "LUTData"))
    count, first = int(descriptor[0]) or 2**16, int(descriptor[1])
    if len(table) == (count + 1) // 2 < count:
        table = table.view(np.uint8)
    if len(table) < count:
        raise _Refused(f"its {name} holds {len(table)} of {count} entries; leave it out")
    table = table[:count].astype(np.int64)
    low, high = float(values[inside].min()), float(values[inside].max())
    starts = (first, first - 2**16) if first >= 2**15 else (first,)
    start = max(starts, key=lambda start: min(high, start + count - 1) - max(low, start))
    indices, reach = (
        np.clip(np.rint(array) - start, 0, count - 1).astype(np.int64)
        for array in (values, np.sort(ends))
    )
    return table[indices], table[reach[0] : reach[1] + 1]


def _words(element: Any, little: bool) -> UInt16[np.ndarray, "n"]:
    """Return an element's value as 16-bit words, least byte first, whichever type it is stored as."""
    if isinstance(element.value, bytes):
        order = "<" if little or element.VR == "OB" else ">"
        words = np.frombuffer(element.value + b"\0" * (len(element.value) % 2), f"{order}u2")
    else:
        words = np.atleast_1d(np.asarray(element.value, np.int64)) & 0xFFFF
    return words.astype("<u2")


def _apply_window(
    values: Shaped[np.ndarray, "h w"], dataset: "Dataset"
) -> UInt8[np.ndarray, "h w"]:
    """Apply the first window to rescaled values, with 0-255 as its output range."""
    from pydicom import Dataset
    from pydicom.pixels import apply_windowing

    center, width = (
        float(np.ravel(dataset[name].value)[0]) for name in ("WindowCenter", "WindowWidth")
    )
    function = _word(dataset, "VOILUTFunction") or "LINEAR"
    if function not in FUNCTIONS:
        raise _Refused(
            f"its VOI LUT Function is {function}, none of {', '.join(FUNCTIONS)}; correct it"
        )
    if not (width >= (1 if function == "LINEAR" else 1e-12) and math.isfinite(center + width)):
        raise _Refused(
            f"it has a window {width} wide about {center}, which shows nothing; correct it"
        )
    # pydicom's output range is that of the stored pixels: a header of 8 unsigned bits makes it 0-255.
    window = Dataset()
    window.PhotometricInterpretation, window.VOILUTFunction = "MONOCHROME2", function
    window.BitsStored, window.PixelRepresentation = 8, 0
    window.WindowCenter, window.WindowWidth = center, width
    return np.rint(apply_windowing(values, window)).astype(np.uint8)


def _padding(stored: Shaped[np.ndarray, "h w"], dataset: "Dataset") -> Bool[np.ndarray, "h w"]:
    """Mark the padding pixels."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    low, high = sorted((int(value), int(dataset.get("PixelPaddingRangeLimit", value))))
    return (stored >= low) & (stored <= high)
