"""Radiographs as DICOM files, made of arrays."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CR = "1.2.840.10008.5.1.4.1.1.1"


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    *,
    bits: int = 8,
    syntax: str = ExplicitVRLittleEndian,
    **tags: Any,
) -> Path:
    """Write a computed radiograph; `tags` override the defaults."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CR, generate_uid()
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    given = {
        "SOPClassUID": CR,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "PatientName": "Phantom^One",
        "PatientID": "1",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "StudyDate": "20260101",
        "StudyTime": "120000",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "StudyID": "1",
        "SeriesNumber": 1,
        "InstanceNumber": 1,
        "Modality": "CR",
        "ViewPosition": "PA",
        "PatientOrientation": ["L", "F"],
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8 * pixels.itemsize,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
        "PixelData": pixels.tobytes(),
    }
    for name, value in (given | tags).items():
        setattr(dataset, name, value)
    if syntax != ExplicitVRLittleEndian:
        from pydicom.encaps import encapsulate

        dataset.PixelData = encapsulate([pixels.tobytes()])
        dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
    return path
