import warnings

import highdicom
import numpy as np
import pydicom
import pytest
from dicoms import look_up_table, write_dicom
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.radiographs.dicom import read_dicom, read_header
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
    table = look_up_table([4, 0, 16], np.array([0, 65535, 32768, 0], np.uint16).tobytes(), "OW")
    pixels = np.array([[0, 1], [2, 3]], np.uint8)
    path = write_dicom(tmp_path / "a", pixels, bits=2, VOILUTSequence=[table])
    assert grey(path).tolist() == [[0, 255], [128, 0]]


TWELVE = np.arange(4096, dtype=np.uint16)
EIGHT = np.rint(TWELVE * (255 / 4095)).astype(np.uint8)
SHIFT = {"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "US"}
TALL = {"RescaleSlope": 16, "RescaleIntercept": 0, "RescaleType": "US"}
SIGNED = {"PixelRepresentation": 1}


@pytest.mark.parametrize(
    ("table", "pixels", "tags"),
    [
        (look_up_table([4096, 0, 12], TWELVE.tolist()), RAMP, {}),
        (look_up_table([4096, 0, 16], TWELVE.tolist()), RAMP, {}),  # claims more bits than it uses
        (look_up_table([4096, 0, 8], TWELVE.tolist()), RAMP, {}),  # and fewer
        (look_up_table([4096, 0, 12], TWELVE.tobytes(), "OW"), RAMP, {}),
        (look_up_table([4096, 0, 16], TWELVE.tobytes(), "OB"), RAMP, {}),
        (look_up_table([4096, 0, 8], EIGHT.tolist()), RAMP, {}),
        (look_up_table([4096, 0, 8], EIGHT.tobytes(), "OW"), RAMP, {}),  # two to a word
        (look_up_table([4096, 0, 8], EIGHT.tobytes(), "OB"), RAMP, {}),
        (look_up_table([4096, 0, 8], EIGHT.view("<u2").tolist()), RAMP, {}),
        (look_up_table([4096, 0, 12], (TWELVE // 2 + 2048).tolist()), RAMP, {}),
        (look_up_table([4096, -1024, 12], TWELVE.tolist(), signed=True), RAMP, SHIFT),
        (look_up_table([4096, 65536 - 1024, 12], TWELVE.tolist()), RAMP, SHIFT),
        (look_up_table([4096, 0, 12], TWELVE.tolist()), (RAMP // 16).astype(np.uint8), TALL),
        (look_up_table([4096, -2048, 12], TWELVE.tolist(), signed=True), RAMP - 2048, SIGNED),
        (look_up_table([4096, 63488, 16], TWELVE.tolist()), RAMP - 2048, SIGNED),
        # 0 is 65,536 entries; only the first 4,096 are within reach of twelve bits.
        (look_up_table([0, 0, 16], np.arange(65536, dtype=np.uint16).tobytes(), "OW"), RAMP, {}),
    ],
)
def test_look_up_tables_of_one_picture(tmp_path, table, pixels, tags):
    # The second table and the window are not shown.
    tags |= {"WindowCenter": 1, "WindowWidth": 2}
    reverse = look_up_table([4096, 0, 12], TWELVE[::-1].tolist())
    bits = 8 if pixels.dtype == np.uint8 else 12
    path = write_dicom(tmp_path / "a", pixels, bits=bits, VOILUTSequence=[table, reverse], **tags)
    found = grey(path).astype(int)
    assert np.abs(found - RAMP * (255 / 4080)).max() <= 1.01


def test_look_up_tables_in_big_endian(tmp_path):
    pixels = RAMP.astype(">u2")
    for number, table in enumerate(
        [
            look_up_table([4096, 0, 12], TWELVE.astype(">u2").tobytes(), "OW"),
            look_up_table([4096, 0, 12], TWELVE.tolist()),
            look_up_table([4096, 0, 8], EIGHT.view("<u2").astype(">u2").tobytes(), "OW"),
        ]
    ):
        path = write_dicom(
            tmp_path / str(number),
            pixels,
            bits=12,
            syntax=ExplicitVRBigEndian,
            VOILUTSequence=[table],
        )
        assert np.abs(grey(path) - RAMP * (255 / 4095)).max() <= 1.01


def test_a_modality_table_of_twelve_bits_comes_first(tmp_path):
    table = look_up_table([256, 0, 12], (np.arange(256) * 16).tolist())
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tags = {"ModalityLUTSequence": [table], "WindowCenter": 2048, "WindowWidth": 4096}
    expected = np.rint(255 * ((RAMP - 2047.5) / 4095 + 0.5))
    np.testing.assert_array_equal(grey(write_dicom(tmp_path / "a", pixels, **tags)), expected)
    del tags["WindowCenter"]
    voi = look_up_table([4096, 0, 16], TWELVE[::-1].tolist())
    found = grey(write_dicom(tmp_path / "b", pixels, VOILUTSequence=[voi], **tags))
    np.testing.assert_array_equal(found, 255 - pixels)


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


CT = "1.2.840.10008.5.1.4.1.1.2"
DX_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
LEFT_LATERAL = pydicom.Dataset()
LEFT_LATERAL.CodeMeaning = "left lateral"


@pytest.mark.parametrize(
    ("tags", "without"),
    [
        ({}, ("Modality",)),  # the SOP class decides
        ({"Modality": ""}, ("SOPClassUID", "SOPInstanceUID")),  # that of the file's header
        ({"Modality": "", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1"}, ("StudyInstanceUID",)),
        ({"PresentationLUTShape": "IDENTITY", "PresentationIntentType": "FOR PRESENTATION"}, ()),
        ({"ViewPosition": "AP LLD"}, ()),
        ({"VOILUTFunction": "linear", "WindowCenter": 2040.5, "WindowWidth": 4081}, ()),
    ],
)
def test_what_is_said_elsewhere_is_read(tmp_path, tags, without):
    path = write_dicom(tmp_path / "a", RAMP, bits=12, without=without, **tags)
    np.testing.assert_array_equal(grey(path), np.rint(RAMP * (255 / 4080)))


def test_a_file_without_preamble_is_read_if_it_names_its_syntax(tmp_path):
    path = write_dicom(tmp_path / "a", RAMP, bits=12)
    content = path.read_bytes()[132:]
    path.write_bytes(content)
    np.testing.assert_array_equal(grey(path), np.rint(RAMP * (255 / 4080)))
    path.write_bytes(content[content.index(b"\x08\0\x16\0") :])
    with pytest.raises(RadiographError, match="without a transfer syntax"):
        read_radiograph(path)


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
        ({"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "Function is CUBIC"),
        ({"PixelData": b"12"}, r"cannot be decoded .* it is damaged"),
        ({"PixelData": b""}, "holds no pixels"),
        ({"VOILUTSequence": [look_up_table([4096, 0, 12], [1, 2, 3])]}, "3 of 4096 entries"),
        ({"VOILUTSequence": [look_up_table([4, 0, 12], [7, 7, 7, 7])]}, "every value alike"),
        ({"VOILUTSequence": [pydicom.Dataset()]}, "its VOI LUT is empty"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "it is FOR PROCESSING"),
        ({"Modality": "", "SOPClassUID": DX_PROCESSING}, "it is FOR PROCESSING"),
        ({"Modality": "", "SOPClassUID": CT}, "states no modality"),
        ({"PresentationLUTShape": "INVERSE"}, "MONOCHROME2 with .* INVERSE"),
        ({"PresentationLUTShape": "LIN OD"}, "MONOCHROME2 with .* LIN OD"),
        (
            {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
            "MONOCHROME1 with .* IDENTITY",
        ),
        ({"HighBit": 15}, "its high bit is 15 of 12"),
        ({"HighBit": 10}, "its high bit is 10 of 12"),
        ({"ViewPosition": "LARGE LATERAL"}, "LARGE LATERAL"),
        ({"ViewPosition": "XTABLE LAT"}, "XTABLE LAT"),
        ({"ViewPosition": "lao"}, "lateral view"),
        ({"ViewPosition": "", "ViewCodeSequence": [LEFT_LATERAL]}, "LEFT LATERAL"),
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


def test_a_missing_decoder_is_named_whole(tmp_path):
    path = write_dicom(tmp_path / "a", RAMP, bits=12, syntax=JPEGLosslessSV1)
    with pytest.raises(
        RadiographError, match=r"pip install 'pylibjpeg>=[\d.]+' 'pylibjpeg-libjpeg>=[\d.]+', or"
    ):
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


MASKS = np.zeros((16, 16, len(PATHOLOGIES)), bool)
MASKS[2:9, 3:5, 1] = True
MASKS[4:, 4:, 1] = MASKS[:3, 5:, 9] = True


def segment(tmp_path, **tags):
    """Write a segmentation of an image with these tags; return its source and what highdicom reads."""
    path = write_dicom(tmp_path / "a", RAMP, bits=12, **tags)
    source = read_header(path)
    write_segmentation(tmp_path / "seg", source, MASKS, "0123456789ab")
    found = highdicom.seg.segread(tmp_path / "seg")
    pixels = found.get_pixels_by_source_instance([source.SOPInstanceUID])
    np.testing.assert_array_equal(pixels[0], MASKS[..., [1, 9]])
    return source, found


SPACING = {"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.2, 0.2]}
FRAME = {"FrameOfReferenceUID": "1.2.3.4", "PositionReferenceIndicator": ""}
PLACE = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}


@pytest.mark.parametrize(
    "tags",
    [{}, {"PatientOrientation": None}, SPACING, FRAME, SPACING | FRAME, SPACING | FRAME | PLACE],
)
def test_segmentations_by_another_reader(tmp_path, tags):
    source, _ = segment(tmp_path, **tags)
    found = pydicom.dcmread(tmp_path / "seg")
    # The bits as PS3.5 8.1.1 packs them: frames without gaps, the least bit first.
    bits = np.unpackbits(np.frombuffer(found.PixelData, np.uint8), bitorder="little")
    frames = bits[: 2 * 256].reshape(2, 16, 16).astype(bool)
    assert found.NumberOfFrames == 2 and found.SegmentationType == "BINARY"
    for item, frame in zip(found.SegmentSequence, frames, strict=True):
        np.testing.assert_array_equal(frame, MASKS[..., PATHOLOGIES.index(item.SegmentLabel)])
        coded = item.SegmentedPropertyTypeCodeSequence[0]
        expected = FINDINGS[item.SegmentLabel][1]
        assert (coded.CodeValue, coded.CodingSchemeDesignator) == expected[:2]
    series = found.ReferencedSeriesSequence[0]
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert (found.PatientID, found.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
    assert "FrameOfReferenceUID" not in found and "PlanePositionSequence" not in str(found)
    assert found.PatientOrientation == source.PatientOrientation


ITEM = pydicom.Dataset()
ITEM.ReferencedSOPClassUID, ITEM.ReferencedSOPInstanceUID = CT, "1.2.3"


@pytest.mark.parametrize(
    ("tags", "kept"),
    [
        # Text by its character set, or by a lone code extension, which means what it means.
        ({"SpecificCharacterSet": "ISO 2022 IR 6"}, {"PatientName": "Phantom^One"}),
        (
            {"SpecificCharacterSet": ["ISO 2022 IR 6", "ISO 2022 IR 87"]},
            {"PatientName": "Phantom^One"},
        ),
        (
            {"SpecificCharacterSet": "ISO 2022 IR 100", "PatientName": "M\u00fcller^Eva"},
            {"PatientName": "M\u00fcller^Eva"},
        ),
        (
            {"SpecificCharacterSet": "ISO 2022 IR 144", "PatientName": "\u041b\u044e^A"},
            {"PatientName": "\u041b\u044e^A"},
        ),
        (
            {
                "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
                "PatientName": "A^B=\u5c71\u7530^\u592a",
            },
            {"PatientName": "A^B=\u5c71\u7530^\u592a"},
        ),
        ({"SpecificCharacterSet": "ISO_IR 999"}, {"PatientName": "Phantom^One"}),
        # Malformed values are dropped.
        ({"PatientBirthDate": "1950"}, {"PatientBirthDate": ""}),
        ({"PatientBirthDate": "19501301"}, {"PatientBirthDate": ""}),
        ({"PatientBirthDate": "1950.01.02"}, {"PatientBirthDate": ""}),
        ({"StudyDate": "2020/01/01"}, {"StudyDate": ""}),
        ({"StudyDate": ["20200101", "20200102"]}, {"StudyDate": ""}),
        ({"StudyTime": "12:00:00"}, {"StudyTime": "", "StudyDate": "20260101"}),
        ({"PatientSex": "Male"}, {"PatientSex": ""}),
        ({"PatientSex": "X"}, {"PatientSex": ""}),
        (
            {"PatientAge": "forty", "PatientWeight": "70.12345678901234567"},
            {"PatientAge": None, "PatientWeight": None},
        ),
        (
            {"PatientAge": "040Y", "PatientWeight": "70.5"},
            {"PatientAge": "040Y", "PatientWeight": 70.5},
        ),
        ({"PatientID": "9" * 65}, {"PatientID": ""}),
        ({"PatientName": "n" * 65}, {"PatientName": ""}),
        ({"AccessionNumber": "a\x07b"}, {"AccessionNumber": ""}),
        ({"StudyID": "1" * 17}, {"StudyID": ""}),
        ({"Manufacturer": "m" * 65, "StudyDescription": "d" * 65}, {"StudyDescription": None}),
        ({"ReferencedStudySequence": [ITEM]}, {"ReferencedStudySequence": [ITEM]}),
        # What is absent is written empty.
        *(
            ({"without": (name,)}, {name: ""})
            for name in (
                *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate"),
                *("StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
            )
        ),
        # The class is that of the file's header.
        ({"without": ("SOPClassUID", "Modality")}, {"PatientID": "1"}),
    ],
)
def test_headers_against_the_standard_are_segmented(tmp_path, tags, kept, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of such values
        source, found = segment(tmp_path, **tags)
    for name, value in kept.items():
        assert (found.get(name) or ("" if value == "" else None)) == value, name
        assert value != "" or name in found
    assert found.StudyInstanceUID == source.StudyInstanceUID
    assert caplog.text == ""


def test_numbers_that_cannot_be_read_are_dropped(tmp_path):
    path = write_dicom(tmp_path / "a", RAMP, bits=12, PatientWeight="70.5", PatientSize="1.70")
    path.write_bytes(path.read_bytes().replace(b"70.5", b"much"))
    write_segmentation(tmp_path / "seg", read_header(path), MASKS, "0123456789ab")
    found = highdicom.seg.segread(tmp_path / "seg")
    assert "PatientWeight" not in found and found.PatientSize == 1.7


@pytest.mark.parametrize("name", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "5f06b85e", "1.2..3", "1." * 33 + "1"])
def test_what_cannot_be_referred_to_is_said(tmp_path, name, value):
    with (
        warnings.catch_warnings(),
        pytest.raises(RadiographError, match=f"nothing to refer to.* no valid {name}"),
    ):
        warnings.simplefilter("ignore")
        tags = {"without": (name,)} if value is None else {name: value}
        segment(tmp_path, **tags)
    assert not (tmp_path / "seg").exists()


def test_what_highdicom_refuses_is_said_in_a_sentence(tmp_path):
    with pytest.raises(RadiographError, match="no segmentation can be made of the image's header"):
        segment(tmp_path, SOPClassUID="1.2.3.4")


def test_nothing_drawn_is_no_segmentation(tmp_path):
    source = pydicom.dcmread(write_dicom(tmp_path / "a", RAMP, bits=12))
    with pytest.raises(RadiographError, match="no finding is drawn"):
        write_segmentation(tmp_path / "seg", source, np.zeros((16, 16, 10), bool), "x")


def test_every_finding_has_codes_of_its_own():
    assert list(FINDINGS) == list(PATHOLOGIES)
    assert len({codes[1] for codes in FINDINGS.values()}) == len(FINDINGS)
