import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chexseg_jax.masks import decode_rle, fill_polygons
from chexseg_jax.pathologies import OBSERVATIONS, PATHOLOGIES, canonical
from datasets.phantom import write, write_phantoms
from datasets.phantom.anatomy import Severity, frontal_chest, sample_build
from datasets.phantom.annotators import EXPERT, SECOND, TRUTH, annotate
from datasets.phantom.drawing import clip, ribbon, sample_canvas, smooth
from datasets.phantom.findings import Finding
from datasets.phantom.labels import CSV_OBSERVATIONS, reported_labels, sample_findings, true_labels
from datasets.phantom.study import image_ids, make_phantom

SIZES = {"train": 12, "valid": 16, "test": 90}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("phantoms") / "data" / "phantom"
    write_phantoms(root, seed=3, **SIZES, short_side=96, progress=False)
    return root


def rows(root: Path, split: str) -> list[dict[str, str]]:
    with (root / f"CheXpert-v1.0-small/{split}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read(root: Path, name: str) -> dict:
    return json.loads((root / name).read_text())


def image_id(path: str) -> str:
    return "_".join(Path(path).with_suffix("").parts[2:])


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def test_layout_is_chexperts(root: Path):
    header = (root / "CheXpert-v1.0-small/train.csv").read_text().splitlines()[0]
    assert header == (
        "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
        "Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,"
        "Pleural Effusion,Pleural Other,Fracture,Support Devices"
    )
    first = {split: rows(root, split)[0]["Path"] for split in SIZES}
    assert first["train"] == "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
    assert first["valid"].startswith("CheXpert-v1.0-small/valid/patient64541/study1/view1_")
    assert first["test"].startswith("CheXpert-v1.0-small/test/patient64741/study1/view1_")
    assert sorted(map(canonical, CSV_OBSERVATIONS)) == sorted(OBSERVATIONS)
    for split, count in SIZES.items():
        table = rows(root, split)
        assert len(table) == count
        for row in table:
            with Image.open(root / row["Path"]) as image:
                assert (image.format, image.mode, min(image.size)) == ("JPEG", "L", 96)
                assert max(image.size) <= 120
            assert row["Sex"] in {"Male", "Female"} and 18 <= int(row["Age"]) <= 90
            lateral = row["Path"].endswith("_lateral.jpg")
            assert row["Frontal/Lateral"] == ("Lateral" if lateral else "Frontal")
            assert row["AP/PA"] in ({""} if lateral else {"AP", "PA"})
            values = {row[name] for name in CSV_OBSERVATIONS}
            assert values <= ({"1.0", "0.0", "-1.0", ""} if split == "train" else {"1.0", "0.0"})


def test_every_file_is_listed_and_no_other(root: Path):
    listed = {row["Path"] for split in SIZES for row in rows(root, split)}
    assert {str(path.relative_to(root)) for path in root.rglob("*.jpg")} == listed
    assert sorted(path.name for path in root.rglob("*.json")) == [
        "gt_annotations_test.json",
        "gt_annotations_val.json",
        "gt_segmentations_test.json",
        "gt_segmentations_train_hidden.json",
        "gt_segmentations_val.json",
        "hb_segmentations_test.json",
    ]
    assert [path.name for path in root.parent.iterdir()] == [root.name]


def test_no_patient_is_in_two_splits():
    patients = {
        split: {image.patient for image in image_ids(0, split, count)}
        for split, count in {"train": 3000, "valid": 800, "test": 900}.items()
    }
    assert not patients["train"] & patients["valid"]
    assert not patients["train"] & patients["test"]
    assert not patients["valid"] & patients["test"]


def test_some_patients_have_several_views_and_studies():
    images = image_ids(0, "train", 500)
    assert {image.view for image in images} == {1, 2}
    assert {image.study for image in images} >= {1, 2}
    assert 0.05 < np.mean([image.lateral for image in images]) < 0.18


@pytest.mark.parametrize("short", ["val", "test"])
def test_masks_are_their_polygons(root: Path, short: str):
    masks = read(root, f"CheXlocalize/gt_segmentations_{short}.json")
    contours = read(root, f"CheXlocalize/gt_annotations_{short}.json")
    assert masks and masks.keys() == contours.keys()
    for key, rles in masks.items():
        assert tuple(rles) == PATHOLOGIES
        height, width = contours[key]["img_size"]
        for name, rle in rles.items():
            filled = fill_polygons(contours[key].get(name, ()), height, width)
            np.testing.assert_array_equal(decode_rle(rle), filled)
            assert filled.any() == (name in contours[key])
            for contour in contours[key].get(name, ()):
                assert (np.array(contour) >= 0).all()
                assert (np.array(contour) <= [width - 1, height - 1]).all()


@pytest.mark.parametrize(("split", "short"), [("valid", "val"), ("test", "test")])
def test_labels_agree_with_masks(root: Path, split: str, short: str):
    masks = read(root, f"CheXlocalize/gt_segmentations_{short}.json")
    for row in rows(root, split):
        labels = {canonical(name): row[name] == "1.0" for name in CSV_OBSERVATIONS}
        rles = masks.get(image_id(row["Path"]))
        present = {name: decode_rle(rles[name]).any() if rles else False for name in PATHOLOGIES}
        assert present == {name: labels[name] for name in PATHOLOGIES}
        assert labels["No Finding"] == (not any(labels[name] for name in OBSERVATIONS[1:]))
        if rles:
            with Image.open(root / row["Path"]) as image:
                assert rles["Edema"]["size"] == [image.height, image.width]


def test_every_pathology_occurs_and_some_images_are_healthy(root: Path):
    masks = read(root, "CheXlocalize/gt_segmentations_test.json")
    for name in PATHOLOGIES:
        assert any(decode_rle(rles[name]).any() for rles in masks.values()), name
    assert 0.6 < len(masks) / SIZES["test"] < 0.95


@pytest.mark.parametrize(
    "name",
    [
        "CheXlocalize/gt_segmentations_test.json",
        "CheXlocalize/hb_segmentations_test.json",
        "extra/gt_segmentations_train_hidden.json",
    ],
)
def test_enlarged_cardiomediastinum_contains_cardiomegaly(root: Path, name: str):
    for rles in read(root, name).values():
        heart = decode_rle(rles["Cardiomegaly"])
        assert not (heart & ~decode_rle(rles["Enlarged Cardiomediastinum"])).any()


def test_a_second_annotator_beats_the_mean_mask():
    """Seeing the image must give better agreement than any threshold of the mean mask."""
    size = 64
    pairs_of: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in PATHOLOGIES}
    for image in image_ids(5, "test", 220):
        phantom = make_phantom(5, image, size)
        masks = np.zeros((2, 80, 80), bool)
        height, width = phantom.pixels.shape
        for name in phantom.expert:
            for mask, contours in zip(masks, (phantom.expert, phantom.second), strict=True):
                mask[:] = False
                mask[:height, :width] = fill_polygons(contours.get(name, ()), height, width)
            pairs_of[name].append((masks[0].copy(), masks[1].copy()))
    gains = {}
    for name, pairs in pairs_of.items():
        experts, seconds = (np.stack(masks) for masks in zip(*pairs, strict=True))
        mean = experts.mean(0)
        priors = [np.mean([iou(e, mean > t) for e in experts]) for t in np.arange(0.05, 0.9, 0.05)]
        gains[name] = np.mean([iou(e, s) for e, s in zip(experts, seconds, strict=True)]) - max(
            priors
        )
    assert min(gains.values()) > 0.02
    assert np.mean(list(gains.values())) > 0.2


def test_images_do_not_depend_on_workers_or_on_their_number(tmp_path: Path):
    sizes = {"train": 20, "valid": 5, "test": 3}
    for name, workers, extra in (("one", 0, 0), ("two", 2, 0), ("more", 0, 2)):
        more = {split: count + extra for split, count in sizes.items()}
        write_phantoms(
            tmp_path / name, seed=1, **more, short_side=64, workers=workers, progress=False
        )
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")]
    assert len(files) > sum(sizes.values())
    for file in files:
        if (tmp_path / "one" / file).is_file():
            one = (tmp_path / "one" / file).read_bytes()
            assert one == (tmp_path / "two" / file).read_bytes(), file
            if file.suffix == ".jpg":
                assert one == (tmp_path / "more" / file).read_bytes(), file


def test_another_seed_is_another_image():
    one, two = (make_phantom(seed, image_ids(0, "valid", 1)[0], 64).pixels for seed in (0, 1))
    assert one.shape != two.shape or (one != two).any()


def test_two_frontals_of_a_study_have_the_same_findings():
    images = image_ids(0, "train", 400)
    pairs = [(a, b) for a, b in pairwise(images) if b.view == 2 and not b.lateral]
    assert len(pairs) > 5
    for pair in pairs:
        one, two = (make_phantom(0, image, 64) for image in pair)
        assert one.labels == two.labels
        assert {k: len(v) for k, v in one.truth.items()} == {
            k: len(v) for k, v in two.truth.items()
        }


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "_write_split", fail)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms(
            tmp_path / "phantom", seed=0, train=1, valid=1, test=1, short_side=64, progress=False
        )
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused(tmp_path: Path):
    with pytest.raises(FileExistsError, match="remove it"):
        write_phantoms(tmp_path, seed=0, train=1, valid=1, test=1, progress=False)


def test_findings_come_at_their_rates_and_together():
    rng = np.random.default_rng(0)
    studies = [sample_findings(rng, train=True) for _ in range(4000)]
    has = {name: np.array([name in study for study in studies]) for name in OBSERVATIONS}
    assert abs(has["Pleural Effusion"].mean() - 0.36) < 0.03
    assert abs(has["Pneumothorax"].mean() - 0.14) < 0.02
    for cause, companion in [
        ("Atelectasis", "Pleural Effusion"),
        ("Cardiomegaly", "Edema"),
        ("Pneumothorax", "Support Devices"),
    ]:
        assert has[companion][has[cause]].mean() > 1.3 * has[companion].mean()


def test_reports_are_nearly_true():
    rng = np.random.default_rng(0)
    wrong = {True: [], False: []}
    uncertain = 0
    for _ in range(3000):
        findings = sample_findings(rng, train=True)
        truth, report = true_labels(findings), reported_labels(rng, findings)
        assert report.keys() == truth.keys()
        value = report["Pleural Effusion"]
        uncertain += value == -1
        if value != -1:
            wrong[truth["Pleural Effusion"] == 1].append(
                (value == 1) != (truth["Pleural Effusion"] == 1)
            )
    assert 0.01 < np.mean(wrong[True]) < 0.06
    assert 0.0 < np.mean(wrong[False]) < 0.03
    assert 60 < uncertain < 240


def test_true_labels_follow_causes():
    labels = true_labels(frozenset({"Cardiomegaly", "Atelectasis"}))
    assert labels["Enlarged Cardiomediastinum"] == labels["Airspace Opacity"] == 1
    assert labels["No Finding"] == labels["Edema"] == 0
    assert true_labels(frozenset())["No Finding"] == 1


def test_annotators_vary_and_the_truth_does_not():
    rng = np.random.default_rng(0)
    square = smooth([(-0.3, -0.3), (0.3, -0.3), (0.3, 0.3), (-0.3, 0.3)], closed=True)
    finding, canvas = Finding("Edema", (square,)), sample_canvas(rng, 128)

    def mask(annotator):
        contours = annotate(rng, annotator, [finding], canvas)
        return fill_polygons(contours.get("Edema", ()), canvas.height, canvas.width)

    truth = mask(TRUTH)
    np.testing.assert_array_equal(truth, mask(TRUTH))
    experts = [iou(truth, mask(EXPERT)) for _ in range(40)]
    seconds = [iou(truth, mask(SECOND)) for _ in range(40)]
    assert 0.85 < np.mean(experts) < 0.99
    assert np.mean([value for value in seconds if value > 0]) < np.mean(experts)


def test_a_lung_lies_between_its_walls():
    rng = np.random.default_rng(0)
    severity = Severity(enlarged=0.0, widened=0.0, collapsed=1, raised=(0.0, 0.2), aired=0)
    chest = frontal_chest(rng, sample_build(rng, False), severity, ap=False)
    right, left = chest.lungs
    assert (right.outline()[:, 0] < 0).all() and (left.outline()[:, 0] > 0).all()
    np.testing.assert_allclose(left.at(1.0, 1.0)[0], [left.wall, left.dome + left.angle])
    np.testing.assert_allclose(left.at(0.4, 1.0)[0, 1], left.dome)
    assert left.dome < right.dome  # lifted by collapse


def test_a_ribbon_has_its_width():
    outline = ribbon(np.array([(0.0, 0.0), (1.0, 0.0), (2.0, 0.0)]), 0.5)
    expected = [(0, 0.25), (1, 0.25), (2, 0.25), (2, -0.25), (1, -0.25), (0, -0.25)]
    np.testing.assert_allclose(outline, expected)


def test_an_outline_ends_at_the_border():
    square = np.array([(-2.0, 1.0), (2.0, 1.0), (2.0, 3.0), (-2.0, 3.0)])
    expected = {(0, 1), (2, 1), (2, 3), (0, 3)}
    assert {tuple(point) for point in clip(square, 10, 10)} == expected
    np.testing.assert_array_equal(clip(square + 2, 10, 10), square + 2)
    assert len(clip(square - 20, 10, 10)) == 0
