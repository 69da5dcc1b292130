"""Radiographs from JPEG, PNG and DICOM files; DICOM segmentations."""
