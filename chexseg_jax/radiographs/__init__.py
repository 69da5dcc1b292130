"""Read radiographs from JPEG, PNG and DICOM files; write DICOM segmentations."""
