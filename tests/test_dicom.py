import warnings

import numpy as np
import pydicom
import pytest
from dicoms import write_dicom
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.radiographs.dicom import read_dicom
from chexseg_jax.radiographs.dicom_seg import FINDINGS, write_segmentation
from chexseg_jax.radiographs.radiograph import RadiographError, Spacing
from chexseg_jax.radiographs.read import read_radiograph

RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


def grey(path):
    return read_radiograph(path).image[..., 0]


def test_eight_bits_without_a_window_are_scaled(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(grey(write_dicom(tmp_path / "a", pixels)), pixels)


def test_monochrome1_is_inverted(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = write_dicom(tmp_path / "a", pixels, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(grey(path), 255 - pixels)


@pytest.mark.parametrize(
    ("function", "at"),
    [
        # Centre 1000, width 401: LINEAR is black up to 799.5 and white from 1199.5 (PS3.3 C.11.2.1.2).
        ("LINEAR", {784: 0, 1008: round(255 * (8.5 / 400 + 0.5)), 1200: 255}),
        ("LINEAR_EXACT", {784: 0, 1008: round(255 * (8 / 401 + 0.5)), 1216: 255}),
        ("SIGMOID", {1008: round(255 / (1 + np.exp(-4 * 8 / 401)))}),
    ],
)
def test_windows_by_hand(tmp_path, function, at):
    tags = {"WindowCenter": [1000, 5], "WindowWidth": [401, 5], "VOILUTFunction": function}
    found = grey(write_dicom(tmp_path / "a", RAMP, bits=12, **tags))
    for value, expected in at.items():
        assert found[RAMP == value] == expected


def test_rescaling_comes_before_the_window(tmp_path):
    tags = {"RescaleSlope": 2, "RescaleIntercept": -100, "RescaleType": "US"}
    tags |= {"WindowCenter": 1000, "WindowWidth": 401}
    found = grey(write_dicom(tmp_path / "a", RAMP, bits=12, **tags))
    expected = 255 * np.clip((2.0 * RAMP - 100 - 999.5) / 400 + 0.5, 0, 1)
    np.testing.assert_array_equal(found, np.rint(expected).astype(np.uint8))


def test_a_look_up_table(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor = [4, 0, 16]
    table.LUTData = np.array([0, 65535, 32768, 0], np.uint16).tobytes()
    pixels = np.array([[0, 1], [2, 3]], np.uint8)
    path = write_dicom(tmp_path / "a", pixels, VOILUTSequence=[table])
    assert grey(path).tolist() == [[0, 255], [128, 0]]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_stretches_nothing(tmp_path, photometric):
    pixels = np.array([[65535, 100], [160, 200]], np.uint16)
    tags = {"PhotometricInterpretation": photometric, "PixelPaddingValue": 65535}
    found = grey(write_dicom(tmp_path / "a", pixels, bits=16, **tags))
    inner = [0, 153, 255] if photometric == "MONOCHROME2" else [255, 102, 0]
    assert found.ravel().tolist() == [0, *inner]


def test_spacing_says_where_it_holds(tmp_path):
    path = write_dicom(tmp_path / "a", RAMP, bits=12, ImagerPixelSpacing=[0.1, 0.2])
    assert read_dicom(path).spacing == Spacing(0.1, 0.2, "ImagerPixelSpacing")
    path = write_dicom(tmp_path / "b", RAMP, bits=12, PixelSpacing=[0.3, 0.3])
    assert read_dicom(path).spacing == Spacing(0.3, 0.3, "PixelSpacing")


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"Modality": "CT"}, "modality is CT"),
        ({"NumberOfFrames": 2}, "2 frames"),
        ({"PhotometricInterpretation": "RGB"}, "pixels are RGB"),
        ({"PatientOrientation": ["R", "F"]}, "rotated or mirrored"),
        ({"PatientOrientation": ["F", "R"]}, "rotated or mirrored"),
        ({"ViewPosition": "LL"}, "lateral view"),
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "a window 0.0 wide"),
        ({"PixelData": b"12"}, "cannot be decoded"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(tmp_path, tags, said):
    path = write_dicom(tmp_path / "a", RAMP, bits=12, **tags)
    with pytest.raises(RadiographError, match=said) as caught:
        read_radiograph(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_an_unreadable_compression_is_named(tmp_path):
    path = write_dicom(tmp_path / "a", RAMP, bits=12, syntax=JPEGLSLossless)
    with pytest.raises(RadiographError, match="stored as JPEG-LS Lossless"):
        read_radiograph(path)


@pytest.mark.parametrize(
    ("attribute", "uid", "said"),
    [
        ("TransferSyntaxUID", DeflatedExplicitVRLittleEndian, "it is deflated DICOM"),
        ("MediaStorageSOPClassUID", MediaStorageDirectoryStorage, "it is a DICOMDIR"),
    ],
)
def test_what_may_grow_or_lead_elsewhere_is_never_read(tmp_path, attribute, uid, said):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((4, 4), np.uint8))
    header = pydicom.dcmread(path)
    setattr(header.file_meta, attribute, uid)
    header.save_as(path)
    with pytest.raises(RadiographError, match=rf"a\.dcm: {said}"):
        read_dicom(path)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"RescaleSlope": "nan", "RescaleIntercept": "0"}, "not finite"),
        ({"WindowCenter": "nan", "WindowWidth": "9"}, "window 9"),
        ({"WindowCenter": "9", "WindowWidth": "inf"}, "window inf"),
        ({"Rows": 4}, "no single frame"),
    ],
)
def test_numbers_that_are_none_and_pixels_for_more_frames_are_refused(tmp_path, tags, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of such numbers and of the frames that it adds
        path = write_dicom(tmp_path / "a.dcm", RAMP, bits=12, **tags)
        with pytest.raises(RadiographError, match=rf"a\.dcm: .*{said}"):
            read_dicom(path)


def test_a_transfer_syntax_that_is_none_is_refused_by_name(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, bits=12)
    content = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")
    path.write_bytes(content)
    with pytest.raises(RadiographError, match=r"a\.dcm: its pixels cannot be decoded"):
        read_dicom(path)


def test_a_decoder_that_fails_says_nothing_beside_the_sentence(tmp_path, caplog):
    path = write_dicom(tmp_path / "a.dcm", RAMP, bits=12, syntax=RLELossless)
    with pytest.raises(RadiographError, match=r"a\.dcm: its pixels cannot be decoded"):
        read_dicom(path)
    assert caplog.text == ""


@pytest.mark.parametrize("tags", [{}, {"PatientOrientation": None}])
def test_segmentations_by_another_reader(tmp_path, tags):
    path = write_dicom(tmp_path / "a", RAMP, bits=12, **tags)
    source = pydicom.dcmread(path, stop_before_pixels=True)
    masks = np.zeros((16, 16, len(PATHOLOGIES)), bool)
    masks[2:9, 3:5, 1] = True
    masks[4:, 4:, 1] = masks[:3, 5:, 9] = True
    write_segmentation(tmp_path / "seg", source, masks, "0123456789ab")
    found = pydicom.dcmread(tmp_path / "seg")
    # The bits as PS3.5 8.1.1 packs them: frames without gaps, the least bit first.
    bits = np.unpackbits(np.frombuffer(found.PixelData, np.uint8), bitorder="little")
    frames = bits[: 2 * 256].reshape(2, 16, 16).astype(bool)
    assert found.NumberOfFrames == 2 and found.SegmentationType == "BINARY"
    for segment, frame in zip(found.SegmentSequence, frames, strict=True):
        np.testing.assert_array_equal(frame, masks[..., PATHOLOGIES.index(segment.SegmentLabel)])
        coded = segment.SegmentedPropertyTypeCodeSequence[0]
        expected = FINDINGS[segment.SegmentLabel][1]
        assert (coded.CodeValue, coded.CodingSchemeDesignator) == expected[:2]
    series = found.ReferencedSeriesSequence[0]
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert (found.PatientID, found.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
    assert "FrameOfReferenceUID" not in found and "PlanePositionSequence" not in str(found)
    assert found.PatientOrientation == source.PatientOrientation


def test_nothing_drawn_is_no_segmentation(tmp_path):
    source = pydicom.dcmread(write_dicom(tmp_path / "a", RAMP, bits=12))
    with pytest.raises(RadiographError, match="no finding is drawn"):
        write_segmentation(tmp_path / "seg", source, np.zeros((16, 16, 10), bool), "x")


def test_every_finding_has_codes_of_its_own():
    assert list(FINDINGS) == list(PATHOLOGIES)
    assert len({codes[1] for codes in FINDINGS.values()}) == len(FINDINGS)
