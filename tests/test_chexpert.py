import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from chexpert_trees import (
    OBSERVED,
    SPLITS,
    below,
    edit,
    image_id,
    write_annotated_images,
    write_batches,
    write_chexpert,
    write_image,
    write_plus,
    write_table,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from chexseg_jax.pathologies import OBSERVATIONS
from datasets.chexpert.csv_table import read_rows
from datasets.errors import DataError
from datasets.prepare import prepare
from datasets.source import available, folder_of, open_source

SMALL = "CheXpert-v1.0-small"


def prepared_ids(raw: Path, data_dir: Path) -> dict[str, list[str]]:
    prepare("chexpert", raw, data_dir)
    splits = available(data_dir)["chexpert"]
    sources = {split: open_source(data_dir, "chexpert", split) for split in splits}
    for source in sources.values():
        assert [example["image_id"] for example in source] == source.image_ids
    return {split: source.image_ids for split, source in sources.items()}


def wanted(*splits: str) -> dict[str, list[str]]:
    return {split: [image_id(image_path) for image_path in SPLITS[split]] for split in splits}


@pytest.mark.parametrize("name", [SMALL, "CheXpert-v1.0"])
@pytest.mark.parametrize("inside", [True, False])
def test_reads_the_folder_or_its_parent(tmp_path, name, inside):
    root = write_chexpert(tmp_path / "raw", name, ("train", "valid", "test"))
    ids = prepared_ids(root if inside else root.parent, tmp_path / "data")
    assert ids == wanted("train", "valid", "test")


def test_reads_the_batches_of_the_full_size_download(tmp_path):
    raw = write_batches(tmp_path / "raw")
    assert prepared_ids(raw, tmp_path / "data") == wanted("train", "valid")


@pytest.mark.parametrize("inside", [True, False])
def test_reads_the_images_of_chexlocalize(tmp_path, inside):
    folder = write_annotated_images(tmp_path / "raw")
    ids = prepared_ids(folder if inside else folder.parent, tmp_path / "data")
    assert ids == wanted("valid", "test")
    example = open_source(tmp_path / "data", "chexpert", "valid")[4]
    metadata = {name: example[name] for name in ("view", "sex", "age", "projection")}
    assert metadata == {"view": "lateral", "sex": "Unknown", "age": -1, "projection": "unknown"}


def test_takes_the_test_split_from_chexlocalize_when_chexpert_has_none(tmp_path):
    write_chexpert(tmp_path / "raw")
    write_annotated_images(tmp_path / "raw" / "CheXlocalize")
    assert prepared_ids(tmp_path / "raw", tmp_path / "data") == wanted("train", "valid", "test")
    valid = open_source(tmp_path / "data", "chexpert", "valid")
    assert valid[0]["sex"] == "Female"  # CheXpert's own table, which has the column


def test_reads_tables_beside_the_batches(tmp_path):
    raw = write_batches(tmp_path / "raw")
    first = raw / "CheXpert-v1.0 batch 1 (validate & csv)"
    (raw / "valid.csv").write_bytes((first / "valid.csv").read_bytes())  # a copy of the same table
    (first / "train.csv").rename(raw / "train.csv")
    assert prepared_ids(raw, tmp_path / "data") == wanted("train", "valid")
    edit(raw / "valid.csv", "Female", "Male", 1)
    with pytest.raises(DataError, match="the split valid is there twice"):
        prepare("chexpert", raw, tmp_path / "again")


def test_paths_may_name_the_batch_folders(tmp_path):
    raw = write_batches(tmp_path / "raw")
    table = raw / "CheXpert-v1.0 batch 1 (validate & csv)/train.csv"
    edit(table, "CheXpert-v1.0/train/", "CheXpert-v1.0 batch 2 (train 1)/")
    edit(table, "batch 2 (train 1)/patient00002", "batch 3 (train 2)/patient00002")
    assert prepared_ids(raw, tmp_path / "data") == wanted("train", "valid")
    edit(table, "batch 2 (train 1)/patient00003", "batch 1 (validate & csv)/patient00003")
    with pytest.raises(DataError, match=r"row 4, column Path: .* is not of the split train"):
        prepare("chexpert", raw, tmp_path / "again")


def test_a_patient_may_be_in_two_batches(tmp_path):
    raw = write_batches(tmp_path / "raw")
    second = raw / "CheXpert-v1.0 batch 2 (train 1)/patient00001/study1/view2_lateral.jpg"
    other = raw / "CheXpert-v1.0 batch 3 (train 2)/patient00001/study1/view2_lateral.jpg"
    other.parent.mkdir(parents=True)
    second.rename(other)
    assert prepared_ids(raw, tmp_path / "data") == wanted("train", "valid")


@pytest.mark.parametrize("name", ["train_visualCheXbert.csv", "labels/train_cheXbert.csv"])
def test_other_tables_of_labels_are_named(tmp_path, name):
    raw = write_batches(tmp_path / "raw")
    (raw / "CheXpert-v1.0 batch 1 (validate & csv)/train.csv").unlink()
    paths = [f"CheXpert-v1.0/train/{image_path}" for image_path in SPLITS["train"]]
    write_table(raw / name, paths, Fracture="1.0")
    edit(raw / name, "Path,", ",Path,")  # the index that pandas writes
    edit(raw / name, "CheXpert-v1.0/", "7,CheXpert-v1.0/")
    given = str(raw / name) if "/" in name else name
    prepare("chexpert", raw, tmp_path / "data", labels=given)
    train = open_source(tmp_path / "data", "chexpert", "train")
    assert train.image_ids == wanted("train")["train"]
    assert all(example["labels"].tolist() == [*[-2] * 12, 1, -2] for example in train)
    assert len(open_source(tmp_path / "data", "chexpert", "valid")) == len(SPLITS["valid"])
    with pytest.raises(DataError, match=r"other\.csv: no such file.*correct --labels"):
        prepare("chexpert", raw, tmp_path / "again", labels="other.csv")


def test_reads_chexpert_plus(tmp_path):
    raw = write_plus(tmp_path / "raw")
    with pytest.raises(DataError, match=r"choose one with --labels NAME: findings_fixed\.json"):
        prepare("chexpert", raw, tmp_path / "data")
    prepare("chexpert", raw, tmp_path / "data", labels="impression_fixed.json")
    train = open_source(tmp_path / "data", "chexpert", "train")
    assert train.image_ids == wanted("train")["train"]
    example = train[0]
    stated = {"Airspace Opacity": -1, "Edema": 1, "Fracture": 0}
    assert example["labels"].tolist() == [stated.get(name, -2) for name in OBSERVATIONS]
    metadata = {name: example[name] for name in ("view", "sex", "age", "projection")}
    assert metadata == {"view": "frontal", "sex": "Female", "age": 61, "projection": "AP"}
    with Image.open(raw / "PNG/train" / SPLITS["train"][0].replace(".jpg", ".png")) as png:
        difference = example["image"][..., 0].astype(int) - np.asarray(png)
    assert example["image"].shape == (24, 32, 1) and np.abs(difference).max() <= 24
    assert len(open_source(tmp_path / "data", "chexpert", "valid")) == len(SPLITS["valid"])
    edit(raw / "chexbert_labels/findings_fixed.json", "patient00002", "patient9")
    with pytest.raises(DataError, match=r"csv, row 5, column Path: .* has no labels in the file"):
        prepare("chexpert", raw, tmp_path / "again", labels="findings_fixed.json")


def test_companions_of_macos_are_no_images(tmp_path):
    root = write_chexpert(tmp_path / "raw")
    for path in ("._train.csv", "train/._patient00001", "train/patient00001/._study1"):
        (root / path).write_bytes(b"\0\5\x16\7")
    assert prepared_ids(root, tmp_path / "data") == wanted("train", "valid")


def test_labels_are_read_by_name_and_keep_their_codes(tmp_path):
    root = write_chexpert(tmp_path, splits=("train",))
    values = {"Lung Opacity": "1.0", "Lung Lesion": "0.0", "Edema": "-1.0", "Fracture": "1"}
    paths = [f"{SMALL}/train/{image_path}" for image_path in SPLITS["train"]]
    write_table(root / "train.csv", paths, **values)
    prepare("chexpert", root, tmp_path / "data")
    labels = open_source(tmp_path / "data", "chexpert", "train")[0]["labels"]
    assert labels.dtype == np.int8
    named = dict(zip(OBSERVATIONS, labels.tolist(), strict=True))
    stated = {"Airspace Opacity": 1, "Lung Lesion": 0, "Edema": -1, "Fracture": 1}
    assert named == {name: stated.get(name, -2) for name in OBSERVATIONS}
    builder = tfds.builder_from_directory(folder_of(tmp_path / "data", "chexpert"))
    assert builder.info.name == "chexpert_weak"
    assert dict(builder.as_data_source("train")[0]["labels"]) == named


def test_columns_may_stand_in_any_order_and_be_called_airspace_opacity(tmp_path):
    path = tmp_path / "train.csv"
    columns = ["Support Devices", "Path", *OBSERVED[:-1]]
    cells = ["1.0", "any root/train/patient7/study2/view3_frontal.jpg", *["0.0"] * 13]
    path.write_text("\ufeff" + ",".join(columns) + "\r\n" + ",".join(cells) + "\r\n\r\n")
    edit(path, "Lung Opacity", "Airspace Opacity")
    (row,) = read_rows(path, "train")
    assert row.labels == (*[0] * 13, 1)
    assert (row.image_id, row.view) == ("patient7_study2_view3_frontal", "frontal")


def test_grey_images_keep_their_bytes(tmp_path):
    root = write_chexpert(tmp_path)
    prepare("chexpert", root, tmp_path / "data")
    builder = tfds.builder_from_directory(folder_of(tmp_path / "data", "chexpert"))
    decoders = {"image": tfds.decode.SkipDecoding()}
    records = builder.as_data_source("train", decoders=decoders)
    source = open_source(tmp_path / "data", "chexpert", "train")
    for image_path, record, example in zip(SPLITS["train"], records, source, strict=True):
        jpeg = (root / "train" / image_path).read_bytes()
        assert record["image"] == jpeg
        with Image.open(io.BytesIO(jpeg)) as image:
            np.testing.assert_array_equal(example["image"][..., 0], image)


def test_colour_images_become_grey(tmp_path):
    root = write_chexpert(tmp_path)
    image_path = root / "train" / SPLITS["train"][2]
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (24, 1))
    Image.fromarray(np.stack([grey] * 3, -1)).save(image_path, quality=95)
    prepare("chexpert", root, tmp_path / "data")
    image = open_source(tmp_path / "data", "chexpert", "train")[2]["image"]
    assert image.shape == (24, 32, 1) and image.dtype == np.uint8
    assert np.abs(image[..., 0].astype(int) - grey).max() <= 4


def link_out(root: Path) -> None:
    outside = root.parent / "elsewhere.jpg"
    write_image(outside)
    image_path = root / "train" / SPLITS["train"][1]
    image_path.unlink()
    image_path.symlink_to(outside)


def link_folder_out(root: Path) -> None:
    patient = root / "train" / "patient00002"
    patient.rename(root.parent / "patient00002")
    patient.symlink_to(root.parent / "patient00002")


def cut_image(root: Path) -> None:
    image_path = root / "train" / SPLITS["train"][1]
    image_path.write_bytes(image_path.read_bytes()[:400])


def replace_image(root: Path) -> None:
    Image.new("L", (4, 4)).save(root / "train" / SPLITS["train"][1], format="PNG")


def turn_image(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (8, 8)).save(path, exif=exif)


def make_pipe(root: Path) -> None:
    image_path = root / "train" / SPLITS["train"][1]
    image_path.unlink()
    os.mkfifo(image_path)


def repeat_row(root: Path) -> None:
    lines = (root / "train.csv").read_text().splitlines(keepends=True)
    (root / "train.csv").write_text("".join([*lines, lines[2]]))


def share_patient(root: Path) -> None:
    write_image(root / "valid/patient00002/study9/view1_frontal.jpg")
    edit(root / "valid.csv", "patient64542/study1", "patient00002/study9")


SECOND = f"{SMALL}/train/patient00002/study1/view1_frontal.jpg"

FAULTS = {
    "missing image": (
        lambda root: (root / "train" / SPLITS["train"][1]).unlink(),
        ["patient00002/study1/view1_frontal.jpg", "train.csv, row 3", "missing", "unpack"],
    ),
    "truncated image": (cut_image, ["view1_frontal.jpg", "row 3", "truncated", "fetch it again"]),
    "no JPEG": (replace_image, ["view1_frontal.jpg", "train.csv, row 3", "no JPEG"]),
    "a pipe": (make_pipe, ["view1_frontal.jpg", "row 3", "not a file"]),
    "link out": (link_out, ["train.csv, row 3", "elsewhere.jpg", "leaves the root"]),
    "linked folder": (link_folder_out, ["train.csv, row 3", "leaves the root"]),
    "id twice": (repeat_row, ["train.csv, row 8, column Path", "twice", "row 3", "delete"]),
    "patient in two splits": (
        share_patient,
        ["valid.csv, row 3", "patient00002", "valid", "train.csv, row 3", "delete"],
    ),
    "unknown column": (
        lambda root: edit(root / "train.csv", "Fracture", "Fractured"),
        ["train.csv, row 1, column 'Fractured'", "not a column", "correct its name"],
    ),
    "missing column": (
        lambda root: write_table(root / "train.csv", []) or edit(root / "train.csv", ",Edema", ""),
        ["train.csv, row 1", "'Edema' is missing", "restore"],
    ),
    "column twice": (
        lambda root: edit(root / "train.csv", "Fracture", "Airspace Opacity"),
        ["train.csv, row 1", "two columns for Airspace Opacity", "delete one"],
    ),
    "short row": (
        lambda root: edit(root / "train.csv", SECOND, f"{SECOND},,"),
        ["train.csv, row 3", "21 cells under 19 columns", "restore"],
    ),
    "empty cells": (
        lambda root: edit(root / "train.csv", "\n", f"\n{',' * 18}\n", 2),
        ["train.csv, row 2, column Path: ''", "correct it"],
    ),
    "turned": (
        lambda root: turn_image(root / "train" / SPLITS["train"][1]),
        ["view1_frontal.jpg", "row 3", "asks for a rotation (6)", "save it upright"],
    ),
    "no rows": (lambda root: write_table(root / "train.csv", []), ["train.csv", "no rows"]),
    "not text": (
        lambda root: (root / "train.csv").write_bytes(b"Path,\xff\xfe"),
        ["not a CSV file"],
    ),
    "no label": (
        lambda root: write_table(root / "train.csv", [SECOND], Edema="0.5"),
        ["train.csv, row 2, column Edema: '0.5'", "not a label", "-1 for uncertain"],
    ),
    "no sex": (
        lambda root: edit(root / "train.csv", "Female", "F", 1),
        ["train.csv, row 2, column Sex: 'F'", "Female"],
    ),
    "no age": (
        lambda root: edit(root / "train.csv", "61", "old", 1),
        ["train.csv, row 2, column Age: 'old'", "whole number"],
    ),
    "no projection": (
        lambda root: edit(root / "train.csv", ",AP,", ",up,", 1),
        ["train.csv, row 2, column AP/PA: 'up'", "AP, PA"],
    ),
    "wrong view": (
        lambda root: edit(root / "train.csv", ",Frontal,", ",Lateral,", 1),
        ["train.csv, row 2, column Frontal/Lateral", "contradicts", "view1_frontal.jpg"],
    ),
    "another split": (
        lambda root: edit(root / "train.csv", f"{SMALL}/train", f"{SMALL}/test", 1),
        ["train.csv, row 2, column Path", "not of the split train", "move the row"],
    ),
    "no images": (
        lambda root: (root / "train").rename(root / "aside"),
        ["train.csv", "images are not beside it", "unpack"],
    ),
    "two copies": (
        lambda root: write_chexpert(root, "CheXpert-v1.0"),
        ["train.csv", "twice", "--raw one of the two"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_invalid_input_is_named_and_leaves_nothing(tmp_path, fault):
    root = write_chexpert(tmp_path / "raw")
    spoil, fragments = FAULTS[fault]
    spoil(root)
    (tmp_path / "kept").mkdir()
    with pytest.raises(DataError) as caught:
        prepare("chexpert", root, tmp_path / "kept" / "new" / "data")
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
    assert below(tmp_path / "kept") == []


LEAVING = [
    "/etc/patient1/study1/view1_frontal.jpg",
    "../patient1/study1/view1_frontal.jpg",
    f"{SMALL}/train/../../patient1/study1/view1_frontal.jpg",
    f"{SMALL}/train/patient1/study1/../view1_frontal.jpg",
    "..\\train\\patient1\\study1\\view1_frontal.jpg",
    "\\\\server\\patient1\\study1\\view1_frontal.jpg",
    f"{SMALL}/train/patient1/study1/view1_frontal\0.jpg",
]
MALFORMED = [
    "",
    "view1_frontal.jpg",
    f"{SMALL}/train/patient1/study1/view1_frontal.gif",
    f"{SMALL}/train/patient1/study1/view1_frontal.jpg/",
    f"{SMALL}/train/patient1//view1_frontal.jpg",
    f"{SMALL}/train/patient１/study1/view1_frontal.jpg",
    f"{SMALL}/train/patient1/study1/view1_frontal.jpg\u200b",
    "C:\\patient1\\study1\\view1_frontal.jpg",
    f"{SMALL}/train/patient1_study1/study1/view1_frontal.jpg",
]


@pytest.mark.parametrize("path", LEAVING)
def test_paths_that_leave_the_root_are_refused(tmp_path, path):
    write_table(tmp_path / "train.csv", [path])
    with pytest.raises(DataError, match=r"row 2, column Path: .*leaves the root"):
        read_rows(tmp_path / "train.csv", "train")


@pytest.mark.parametrize("path", MALFORMED)
def test_paths_that_are_no_image_are_refused(tmp_path, path):
    write_table(tmp_path / "train.csv", [path])
    with pytest.raises(DataError, match=r"row 2, column Path: .*correct it"):
        read_rows(tmp_path / "train.csv", "train")


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused(content, headed):
    header = ",".join(["Path", *OBSERVED]).encode() + b"\n" if headed else b""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "train.csv"
        table.write_bytes(header + content)
        with pytest.raises(DataError, match=r"train\.csv"):
            read_rows(table, "train")
