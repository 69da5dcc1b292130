"""Radiographs as DICOM files, made of arrays."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, config
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

CR = "1.2.840.10008.5.1.4.1.1.1"


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    *,
    bits: int = 8,
    syntax: str = ExplicitVRLittleEndian,
    without: tuple[str, ...] = (),
    **tags: Any,
) -> Path:
    """Write a computed radiograph; `tags` override the defaults, valid or not."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CR, generate_uid()
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset(
        str(path),
        {},
        file_meta=meta,
        preamble=b"\0" * 128,
        is_implicit_VR=False,
        is_little_endian=UID(syntax).is_little_endian,
    )
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
    checks = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.IGNORE
    for name, value in (given | tags).items():
        if name not in without:
            setattr(dataset, name, value)
    if UID(syntax).is_compressed:
        from pydicom.encaps import encapsulate

        dataset.PixelData = encapsulate([pixels.tobytes()])
        dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
    config.settings.reading_validation_mode = checks
    return path


def look_up_table(
    descriptor: list[int], data: Any, vr: str = "US", signed: bool = False
) -> Dataset:
    """Return an item of a sequence of look-up tables; `data` are entries or bytes."""
    table = Dataset()
    table.add_new("LUTDescriptor", "SS" if signed else "US", descriptor)
    table.add_new("LUTData", vr, data)
    return table
