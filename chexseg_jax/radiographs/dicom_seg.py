"""Write masks as DICOM Segmentation objects: one per image, with a binary segment per pathology.

Pathologies are coded in SNOMED CT or DICOM terms where a code exists, otherwise in a private scheme,
never with a similar finding's code. The object refers to the source instance and copies its patient,
study, position and frame of reference, no more. Needs the extra `dicom`.
"""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Bool

from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.radiographs.radiograph import RadiographError
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
        RadiographError: all masks are empty, which DICOM cannot represent, or the extra is missing.
    """
    try:
        import highdicom
        from pydicom.uid import generate_uid
    except ImportError:
        raise RadiographError(
            "DICOM segmentations need a package: pip install 'chexseg-jax[dicom]'"
        ) from None
    present = np.flatnonzero(masks.any((0, 1)))
    if not present.size:
        raise RadiographError(f"{path}: no finding is drawn, and a segmentation needs a mask")
    release = version("chexseg-jax")
    segmentation: Any = highdicom.seg.Segmentation(
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
    segmentation.PatientOrientation = source.get("PatientOrientation") or None
    with atomic_write(path) as temporary:
        segmentation.save_as(temporary)


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
