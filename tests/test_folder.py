import csv
from pathlib import Path

import numpy as np
import pytest
from chexpert_trees import below, edit, write_image, write_json
from PIL import Image

from chexseg_jax.masks import encode_rle, unpack
from chexseg_jax.pathologies import OBSERVATIONS, PATHOLOGIES
from datasets.__main__ import main
from datasets.errors import DataError
from datasets.folder import split_of
from datasets.prepare import prepare
from datasets.source import available, open_source

HEART = np.zeros((24, 32), bool)
HEART[5:15, 10:20] = True
SPLITS = ("train", "train", "valid", "valid", "valid", "valid", "test", "test")
PATHS = [f"{'ab'[i % 2]}/x {i}.{'png' if i % 3 else 'jpg'}" for i in range(len(SPLITS))]


def write_folder(root: Path, **columns: list[str]) -> Path:
    """Write eight images of eight patients, and their table."""
    for i, path in enumerate(PATHS):
        write_image(root / "images" / path, seed=i)
    columns = {
        "path": PATHS,
        "patient": [f"p{i}" for i in range(len(PATHS))],
        "view": ["frontal"] * 7 + ["lateral"],
        "split": list(SPLITS),
        "Cardiomegaly": ["1", "0", "-1", "", "1", "0", "1", "0"],
        "Lung Opacity": ["", "1"] * 4,
    } | columns
    with (root / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))
    return root


def write_mask(path: Path, mask: np.ndarray = HEART) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def prepare_folder(root: Path, data_dir: Path, masks: Path | None = None, **options):
    labels = str(root / "labels.csv")
    return prepare("folder", root / "images", data_dir, labels=labels, masks=masks, **options)


def ids(data_dir: Path, name: str) -> dict[str, list[str]]:
    splits = available(data_dir)[name]
    return {split: open_source(data_dir, name, split).image_ids for split in splits}


def test_images_and_labels_are_prepared_like_chexpert(tmp_path):
    root = write_folder(tmp_path)
    prepare_folder(root, tmp_path / "data")
    assert ids(tmp_path / "data", "chexpert") == {
        "train": ["a_x 0", "b_x 1"],
        "valid": ["a_x 2", "b_x 3", "a_x 4", "b_x 5"],
        "test": ["a_x 6", "b_x 7_lateral"],
    }
    train = open_source(tmp_path / "data", "chexpert", "train")
    stated = {"Cardiomegaly": 1, "Airspace Opacity": -2}
    assert train[0]["labels"].tolist() == [stated.get(name, -2) for name in OBSERVATIONS]
    with Image.open(root / "images" / PATHS[0]) as jpeg:
        np.testing.assert_array_equal(train[0]["image"][..., 0], jpeg)
    example = open_source(tmp_path / "data", "chexpert", "test")[1]
    assert (example["view"], example["sex"], example["age"]) == ("lateral", "Unknown", -1)
    assert available(tmp_path / "data").keys() == {"chexpert"}


def test_columns_are_known_in_any_case_and_order(tmp_path):
    root = write_folder(tmp_path, Age=["7"] * 8, sex=["Male"] * 8)
    edit(root / "labels.csv", "path,patient,view", "Path,Patient,Frontal/Lateral")
    edit(root / "labels.csv", "Lung Opacity", "airspace_opacity")
    prepare_folder(root, tmp_path / "data")
    example = open_source(tmp_path / "data", "chexpert", "train")[1]
    assert (example["sex"], example["age"]) == ("Male", 7)
    assert example["labels"][OBSERVATIONS.index("Airspace Opacity")] == 1


@pytest.mark.parametrize("form", ["json", "folders", "names", "stems"])
def test_masks_are_prepared_like_chexlocalize(tmp_path, form):
    root = write_folder(tmp_path)
    masks = tmp_path / "masks"
    annotated = [PATHS[i].rpartition(".")[0] for i in (0, 2, 3, 4, 5, 6)]
    if form == "json":
        masks = tmp_path / "masks.json"
        write_json(masks, {image: {"Lung Opacity": encode_rle(HEART)} for image in annotated})
    for image in annotated if form != "json" else []:
        name = image if form != "stems" else image.rpartition("/")[2]
        end = "/lung opacity.png" if form == "folders" else "_Lung_Opacity.png"
        write_mask(masks / f"{name}{end}")
    prepare_folder(root, tmp_path / "data", masks)
    found = ids(tmp_path / "data", "chexlocalize")
    assert sorted(found["expert_train"] + found["expert_val"]) == [
        "a_x 2",
        "a_x 4",
        "b_x 3",
        "b_x 5",
    ]
    assert found["test"] == ["a_x 6", "b_x 7_lateral"] and found["hidden"] == ["a_x 0"]
    drawn, unannotated = open_source(tmp_path / "data", "chexlocalize", "test")
    assert (drawn["annotated"], unannotated["annotated"]) == (True, False)
    planes = unpack(drawn["masks"]).astype(bool)
    for k, name in enumerate(PATHOLOGIES):
        expected = HEART if name == "Airspace Opacity" else np.zeros_like(HEART)
        np.testing.assert_array_equal(planes[..., k], expected)


def test_masks_are_resized_on_request(tmp_path):
    root = write_folder(tmp_path)
    write_mask(root / "masks/x 6_Edema.png", HEART[::2, ::2])
    prepare_folder(root, tmp_path / "data", root / "masks", resize_masks=True)
    drawn = open_source(tmp_path / "data", "chexlocalize", "test")[0]
    mask = unpack(drawn["masks"])[..., PATHOLOGIES.index("Edema")].astype(bool)
    assert mask.shape == HEART.shape and (mask & HEART).sum() > 0.8 * (mask | HEART).sum()


def test_patients_are_split_by_their_hash(tmp_path):
    root = write_folder(tmp_path, split=[""] * 8)
    prepare_folder(root, tmp_path / "plain")
    for split, found in ids(tmp_path / "plain", "chexpert").items():
        assert found
        for image_id in found:
            number = image_id.removesuffix("_lateral")[-1]
            assert split_of(f"p{number}", masked=False, any_masks=False) == split
    for number in range(8):
        write_mask(tmp_path / f"masks/x {number}_Cardiomegaly.png")
    prepare_folder(root, tmp_path / "masked", tmp_path / "masks")
    assert ids(tmp_path / "masked", "chexpert").keys() == {"valid", "test"}
    shares = [split_of(str(i), masked=False, any_masks=False) for i in range(4000)]
    for split, share in (("train", 0.8), ("valid", 0.1), ("test", 0.1)):
        assert abs(shares.count(split) / 4000 - share) < 0.02
    assert {split_of(str(i), masked=True, any_masks=True) for i in range(99)} == {"valid", "test"}
    assert {split_of(str(i), masked=False, any_masks=True) for i in range(99)} == {"train", "valid"}


def test_without_patients_every_image_is_anothers(tmp_path, capsys):
    root = write_folder(tmp_path)
    lines = (root / "labels.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    (root / "labels.csv").write_text("\n".join(",".join([r[0], *r[2:]]) for r in rows) + "\n")
    prepare_folder(root, tmp_path / "data")
    assert "no column patient" in capsys.readouterr().out


FAULTS = {
    "no column": (lambda root: edit(root / "labels.csv", "path", "file"), "row 1, column 'file'"),
    "no observation": (
        lambda root: edit(root / "labels.csv", "Cardiomegaly,Lung Opacity", "age,sex"),
        "no column of an observation",
    ),
    "outside": (lambda root: edit(root / "labels.csv", "a/x 0", "../x 0"), "leaves the root"),
    "twice": (lambda root: edit(root / "labels.csv", "b/x 1.png", "a/x 0.png"), "listed twice"),
    "label": (lambda root: edit(root / "labels.csv", ",1,", ",yes,", 1), "'yes' is not a label"),
    "split": (lambda root: edit(root / "labels.csv", ",train", ",dev", 1), "'dev' is not known"),
    "view": (lambda root: edit(root / "labels.csv", "frontal", "top", 1), "'top' is not known"),
    "two splits": (
        lambda root: edit(root / "labels.csv", "p2", "p0"),
        "p0 is in valid and in train",
    ),
    "missing": (lambda root: (root / "images" / PATHS[0]).unlink(), "row 2.*missing"),
    "no image": (
        lambda root: (root / "images" / PATHS[1]).write_bytes(b"<html>"),
        r"x 1\.png .*row 3, column Path\): no readable JPEG, PNG or DICOM",
    ),
    "mask of no image": (
        lambda root: write_mask(root / "masks/y_Edema.png"),
        "y_Edema.png, y, column Edema: no image of that name",
    ),
    "mask of no finding": (
        lambda root: write_mask(root / "masks/x 2_nodule.png"),
        "names no finding",
    ),
    "grey mask": (
        lambda root: write_image(root / "masks/x 2_Edema.png"),
        "column Edema: has [0-9]+ grey values; write 0",
    ),
    "colour mask": (
        lambda root: write_image(root / "masks/x 2_Edema.png", mode="RGB"),
        "has several channels; write a grey PNG",
    ),
    "no mask": (
        lambda root: (root / "masks/x 2_Edema.png").write_text("x"),
        "no readable PNG",
    ),
    "size": (
        lambda root: write_mask(root / "masks/x 2_Edema.png", HEART[:, :9]),
        "masks of 24 x 9 pixels on an image of 24 x 32",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_can_be_listed(tmp_path, fault):
    root = write_folder(tmp_path / "raw")
    write_mask(root / "masks/x 6_Edema.png")
    spoil, message = FAULTS[fault]
    spoil(root)
    with pytest.raises(DataError, match=message):
        prepare_folder(root, tmp_path / "data", root / "masks")
    faults = prepare_folder(root, tmp_path / "listed", root / "masks", on_fault="list")
    assert len(faults.found) == 1
    assert below(tmp_path / "listed") == ["faults.csv"]


def test_the_command(tmp_path, capsys):
    root = write_folder(tmp_path)
    write_json(tmp_path / "masks.json", {"a_x 6": {"Edema": encode_rle(HEART)}})
    command = ["folder", "--images", str(root / "images"), "--labels", str(root / "labels.csv")]
    data = ["--data-dir", str(tmp_path / "data"), "--masks", str(tmp_path / "masks.json")]
    assert main([*command, *data]) == 0
    said = capsys.readouterr().out
    assert "chexpert: train 2, valid 4, test 2" in said and "chexlocalize: test 2" in said
    assert main([*command, *data]) == 1
    assert "is there already" in capsys.readouterr().err
