"""DICOM Segmentation objects of masks: one object an image, one binary segment a finding.

Findings are coded in SNOMED CT or DICOM's own terms where there is such a code, and in a private scheme
where there is none, never in a neighbour's. The object refers to the source instance and says of the
patient, study, position and frame of reference what the source says, no more. Needs the extra `dicom`.
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
"""Value, scheme and meaning."""

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
"""Category, type and region of each finding. The published codes for consolidation contradict one
another, so it has a private one."""


def write_segmentation(
    path: Path, source: "Dataset", masks: Bool[np.ndarray, "h w k"], fingerprint: str
) -> None:
    """Writes the masks of one radiograph as a DICOM Segmentation; empty segments are not written.

    Args:
        path: where to.
        source: the radiograph's data set, its pixels not needed.
        masks: at its size.
        fingerprint: of the network, noted as the device's serial number.

    Raises:
        RadiographError: no mask is drawn, which DICOM cannot say, or the extra is not installed.
    """
    try:
        import highdicom
        from pydicom.uid import generate_uid
    except ImportError:
        raise RadiographError(
            "DICOM segmentations need a package: pip install 'chexseg-jax[dicom]'"
        ) from None
    drawn = np.flatnonzero(masks.any((0, 1)))
    if not drawn.size:
        raise RadiographError(f"{path}: no finding is drawn, and a segmentation needs one")
    release = version("chexseg-jax")
    segmentation: Any = highdicom.seg.Segmentation(
        source_images=[source],
        pixel_array=masks[None][..., drawn].astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[
            _description(highdicom, number, PATHOLOGIES[k], release)
            for number, k in enumerate(drawn, 1)
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
    # A projection's images carry it, if only blank; highdicom leaves it out.
    segmentation.PatientOrientation = source.get("PatientOrientation") or None
    with atomic_write(path) as aside:
        segmentation.save_as(aside)


def _description(highdicom: Any, number: int, name: str, release: str) -> Any:
    category, kind, region = (highdicom.sr.CodedConcept(*code) for code in FINDINGS[name])
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="CheXseg",
            version=release,
            family=highdicom.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        ),
        anatomic_regions=[region],
    )
