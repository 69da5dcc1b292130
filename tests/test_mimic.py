import csv
import gzip
from pathlib import Path

import pytest
from chexpert_trees import OBSERVED, edit, write_image

from chexseg_jax.pathologies import OBSERVATIONS
from datasets.__main__ import main
from datasets.errors import DataError
from datasets.prepare import prepare
from datasets.source import available, open_source

IMAGES = [  # subject, study, view, split
    ("10000032", "50414267", "PA", "train"),
    ("10000032", "50414267", "LATERAL", "train"),
    ("10000032", "53189527", "AP AXIAL", "train"),
    ("10000764", "57375967", "", "train"),
    ("10000764", "57375968", "AP", "train"),
    ("11000898", "50771383", "AP", "validate"),
    ("12000935", "50578979", "LL", "test"),
]


def dicom_id(number: int) -> str:
    return "-".join([f"{number:08x}"] * 5)


def write_csv(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    opened = (
        gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="")
    )
    with opened as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture
def raw(tmp_path) -> Path:
    """MIMIC-CXR-JPG with an image of no stated view and one whose study has no labels."""
    root = tmp_path / "raw"
    for i, (subject, study, _, _) in enumerate(IMAGES):
        write_image(root / f"files/p{subject[:2]}/p{subject}/s{study}/{dicom_id(i)}.jpg", seed=i)
    studies = {(subject, study) for subject, study, _, _ in IMAGES if study != "57375968"}
    names = sorted(OBSERVED)
    labels = [[*s, *("1.0" if name == "Edema" else "" for name in names)] for s in sorted(studies)]
    write_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id", "study_id", *names], labels)
    splits = [[dicom_id(i), study, who, split] for i, (who, study, _, split) in enumerate(IMAGES)]
    write_csv(
        root / "mimic-cxr-2.0.0-split.csv", ["dicom_id", "study_id", "subject_id", "split"], splits
    )
    views = [[dicom_id(i), who, view, "2544"] for i, (who, _, view, _) in enumerate(IMAGES)]
    write_csv(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        ["dicom_id", "subject_id", "ViewPosition", "Rows"],
        views,
    )
    return root


def test_reads_mimic(tmp_path, raw, capsys):
    assert main(["mimic", "--raw", str(raw), "--data-dir", str(tmp_path / "data")]) == 0
    said = capsys.readouterr().out
    assert "chexpert: train 3, valid 1, test 1" in said
    assert "1 images are left out: their study has no labels" in said
    assert "1 images are left out: their view is not stated" in said
    assert available(tmp_path / "data") == {"chexpert": ["train", "valid", "test"]}
    train = open_source(tmp_path / "data", "chexpert", "train")
    assert train.image_ids == [
        f"p10_p10000032_s50414267_{dicom_id(0)}",
        f"p10_p10000032_s50414267_{dicom_id(1)}_lateral",
        f"p10_p10000032_s53189527_{dicom_id(2)}",
    ]
    assert [(e["view"], e["projection"]) for e in train] == [
        ("frontal", "PA"),
        ("lateral", "unknown"),
        ("frontal", "AP"),
    ]
    for example in train:
        assert example["labels"].tolist() == [1 if n == "Edema" else -2 for n in OBSERVATIONS]
    assert open_source(tmp_path / "data", "chexpert", "test")[0]["projection"] == "LL"


def test_faults_are_named(tmp_path, raw):
    split = raw / "mimic-cxr-2.0.0-split.csv"
    edit(split, dicom_id(0), "../../x")
    with pytest.raises(DataError, match=r"split\.csv, row 2, column dicom_id: .* is not an id"):
        prepare("mimic", raw, tmp_path / "data")
    edit(split, "../../x", dicom_id(0))
    edit(split, "12000935", "11000898")
    with pytest.raises(DataError, match="p11000898 is in test and in valid"):
        prepare("mimic", raw, tmp_path / "data")
    edit(split, "11000898,test", "12000935,test")
    (raw / f"files/p10/p10000032/s50414267/{dicom_id(0)}.jpg").unlink()
    with pytest.raises(DataError, match=r"\.jpg \(.*split\.csv, row 2, column Path\): .*missing"):
        prepare("mimic", raw, tmp_path / "data")
    table = raw / "mimic-cxr-2.0.0-chexpert.csv.gz"
    table.write_bytes(table.read_bytes()[:80])
    with pytest.raises(DataError, match="not a CSV file"):
        prepare("mimic", raw, tmp_path / "data")
    table.unlink()
    with pytest.raises(DataError, match=r"no table \*-chexpert\.csv or .*\.gz is there"):
        prepare("mimic", raw, tmp_path / "data")
    with pytest.raises(DataError, match="no folder files is there; give --raw"):
        prepare("mimic", raw / "files", tmp_path / "data")
