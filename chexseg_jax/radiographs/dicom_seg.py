"""Write masks as DICOM Segmentation objects: one per image, with a binary segment per pathology.

Pathologies are coded in SNOMED CT or DICOM terms where a code exists, otherwise in a private scheme,
never with a similar finding's code. The object refers to the source instance and copies its patient and
study, no more: a projection has no plane in a frame of reference. What the source lacks or writes
against the standard is left empty. Needs the extra `dicom`.
"""

import logging
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Bool, Int

from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.radiographs.dicom import sop_class
from chexseg_jax.radiographs.radiograph import RadiographError, error_text
from chexseg_jax.runtime.atomic_write import atomic_write

if TYPE_CHECKING:
    from pydicom import Dataset

Code = tuple[str, str, str]
"""Code value, coding scheme and meaning."""

PRIVATE: Final = "99CHEXSEG"
ABNORMAL: Final[Code] = ("49755003", "SCT", "Morphologically Abnormal Structure")
OBJECT: Final[Code] = ("260787004", "SCT", "Physical object")
MEDIASTINUM: Final[Code] = ("72410000", "SCT", "Mediastinum")
HEART: Final[Code] = ("80891009", "SCT", "Heart")
LUNG: Final[Code] = ("39607008", "SCT", "Lung")
PLEURA: Final[Code] = ("3120008", "SCT", "Pleura")
CHEST: Final[Code] = ("51185008", "SCT", "Chest")

FINDINGS: Final[dict[str, tuple[Code, Code, Code]]] = {
    "Enlarged Cardiomediastinum": (
        ABNORMAL,
        ("EC", PRIVATE, "Enlarged cardiomediastinum"),
        MEDIASTINUM,
    ),
    "Cardiomegaly": (ABNORMAL, ("8186001", "SCT", "Cardiomegaly"), HEART),
    "Lung Lesion": (ABNORMAL, ("52988006", "SCT", "Lesion"), LUNG),
    "Airspace Opacity": (ABNORMAL, ("112001", "DCM", "Opacity"), LUNG),
    "Edema": (ABNORMAL, ("19242006", "SCT", "Pulmonary edema"), LUNG),
    "Consolidation": (ABNORMAL, ("CONSOLIDATION", PRIVATE, "Consolidation of lung"), LUNG),
    "Atelectasis": (ABNORMAL, ("46621007", "SCT", "Atelectasis"), LUNG),
    "Pneumothorax": (ABNORMAL, ("36118008", "SCT", "Pneumothorax"), PLEURA),
    "Pleural Effusion": (ABNORMAL, ("60046008", "SCT", "Pleural effusion"), PLEURA),
    "Support Devices": (OBJECT, ("DEVICES", PRIVATE, "Support devices"), CHEST),
}
"""Category, type and region of each pathology. Published codes for consolidation contradict each other,
so it has a private one."""


REFERENCES: Final = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
"""Without these attributes nothing can refer to an image."""
COPIED: Final = (0x0008, 0x0010, 0x0012, 0x0032)
"""The groups of what is said of patient, study, trial and equipment."""
COPIED_TAGS: Final = (0x0020000D, 0x0020000E, 0x00200010)
"""The UIDs of study and series, and the ID of the study."""
REQUIRED: Final = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
"""Attributes that must be present, if only empty (type 2)."""
FORMATS: Final = {
    "DA": re.compile(r"\d{8}"),
    "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?"),
    "UI": re.compile(r"(?=.{1,64}$)(0|[1-9]\d*)(\.(0|[1-9]\d*))+"),
}
"""Formats that pydicom checks less strictly."""
TEXT: Final = re.compile("[^\x00-\x1f\x7f-\x9f\ufffd]*")
"""Text without control characters, and without the sign of a byte that is none of its character set."""


def write_segmentation(
    path: Path, source: "Dataset", masks: Bool[np.ndarray, "h w k"], fingerprint: str
) -> None:
    """Write the masks of a radiograph as a DICOM Segmentation; empty segments are left out.

    Args:
        path: the file to write.
        source: the radiograph's data set; its pixels are not needed.
        masks: at the size of the radiograph.
        fingerprint: of the network, recorded as the device's serial number.

    Raises:
        RadiographError: all masks are empty, which DICOM cannot represent; the source cannot be referred
            to; or the extra is missing.
    """
    try:
        import highdicom
    except ImportError:
        raise RadiographError(
            "DICOM segmentations need a package: pip install 'chexseg-jax[dicom]'"
        ) from None
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)  # it logs patients' names
    present = np.flatnonzero(masks.any((0, 1)))
    if not present.size:
        raise RadiographError(f"{path}: no finding is drawn, and a segmentation needs a mask")
    try:
        segmentation = _segment(highdicom, _reference(path, source), masks, present, fingerprint)
    except RadiographError:
        raise
    except Exception as error:  # highdicom raises any type on headers that it does not expect
        raise RadiographError(
            f"{path}: no segmentation can be made of the image's header ({error_text(error)}); "
            "its masks are in the other files"
        ) from None
    with atomic_write(path) as temporary:
        segmentation.save_as(temporary)


def _reference(path: Path, source: "Dataset") -> "Dataset":
    """Return what a segmentation takes from its source: valid values alone, to be written in UTF-8.

    Raises:
        RadiographError: the source lacks what a reference needs.
    """
    clean = _valid_elements(source)
    absent = [name for name in REFERENCES if not clean.get(name)]
    clean.SOPClassUID = sop_class(source)
    if absent or not FORMATS["UI"].fullmatch(clean.SOPClassUID):
        raise RadiographError(
            f"{path}: there is nothing to refer to, for the image has no valid "
            f"{absent[0] if absent else 'SOPClassUID'}; its masks are in the other files"
        )
    for name in REQUIRED:
        if name not in clean:
            setattr(clean, name, None)
    if clean.PatientSex not in ("M", "F", "O"):
        clean.PatientSex = None
    clean.Rows, clean.Columns, clean.SpecificCharacterSet = (
        source.Rows,
        source.Columns,
        "ISO_IR 192",
    )
    clean.PatientOrientation = source.get("PatientOrientation") or None
    return clean


def _valid_elements(source: "Dataset") -> "Dataset":
    """Copy what is said of patient, study and equipment, without elements that hold invalid values."""
    from pydicom import Dataset

    clean = Dataset()
    for tag in list(source.keys()):
        if tag.group in COPIED or tag in COPIED_TAGS:
            try:  # not `for element in source`, which ends at the first that cannot be converted
                element = source[tag]
                clean.add_new(tag, element.VR, _valid_value(element))
            except Exception:  # pydicom raises any type on values that it cannot convert
                continue
    return clean


def _valid_value(element: Any) -> Any:
    """Return the value of an element with its text decoded.

    Raises:
        ValueError: it, or one in a sequence, is against the standard.
    """
    from pydicom import Dataset
    from pydicom.config import RAISE
    from pydicom.datadict import dictionary_VM
    from pydicom.valuerep import STR_VR, validate_value

    if element.VR == "SQ":
        items = [Dataset() for _ in element.value]
        for item, source in zip(items, element.value, strict=True):
            for nested in source:
                item.add_new(nested.tag, nested.VR, _valid_value(nested))
        return items
    if element.is_empty:
        return None
    if element.VM > 1 and dictionary_VM(element.tag) == "1":
        raise ValueError(f"{element.VM} values of {element.keyword}")
    values = []
    for value in element.value if element.VM > 1 else [element.value]:
        value = str(value).strip(" \0") if element.VR in STR_VR else value
        validate_value(element.VR, value, RAISE)
        if not FORMATS.get(element.VR, TEXT).fullmatch(str(value)):
            raise ValueError(f"{element.keyword} is {value}")
        values.append(value)
    return values if element.VM > 1 else values[0]


def _segment(
    highdicom: Any,
    source: "Dataset",
    masks: Bool[np.ndarray, "h w k"],
    present: Int[np.ndarray, "n"],
    fingerprint: str,
) -> Any:
    """Make the segmentation of the masks that are present."""
    from pydicom.uid import generate_uid

    release = version("chexseg-jax")
    segmentation = highdicom.seg.Segmentation(
        source_images=[source],
        pixel_array=masks[None][..., present].astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[
            _describe_segment(highdicom, number, PATHOLOGIES[k], release)
            for number, k in enumerate(present, 1)
        ],
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="chexseg-jax",
        manufacturer_model_name="CheXseg segmenter",
        software_versions=release,
        device_serial_number=fingerprint,
        content_label="CHEXSEG",
        content_description="Not a medical device; for research",
        omit_empty_frames=False,
    )
    # The attribute is mandatory in projection images, even if empty; highdicom leaves it out.
    segmentation.PatientOrientation = source.PatientOrientation
    return segmentation


def _describe_segment(highdicom: Any, number: int, name: str, release: str) -> Any:
    category, finding, region = (highdicom.sr.CodedConcept(*code) for code in FINDINGS[name])
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=category,
        segmented_property_type=finding,
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="CheXseg",
            version=release,
            family=highdicom.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        ),
        anatomic_regions=[region],
    )
