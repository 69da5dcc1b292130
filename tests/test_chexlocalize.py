import json
from pathlib import Path

import numpy as np
import pytest
from chexpert_trees import (
    EMPTY,
    HEART,
    HEIGHT,
    SPLITS,
    TUBE,
    WIDTH,
    below,
    edit,
    image_id,
    rectangle,
    write_annotated_images,
    write_annotations,
    write_chexpert,
    write_image,
    write_json,
)
from hypothesis import given
from hypothesis import strategies as st

from chexseg_jax.masks import MaskError, encode_rle, unpack
from chexseg_jax.pathologies import PATHOLOGIES
from datasets.chexlocalize.annotations import presence_bits, rasterise
from datasets.errors import DataError
from datasets.prepare import prepare
from datasets.source import available, open_source

VAL = "CheXlocalize/gt_segmentations_val.json"
TEST = "CheXlocalize/gt_segmentations_test.json"
HIDDEN = "extra/gt_segmentations_train_hidden.json"
IDS = {split: [image_id(path) for path in paths] for split, paths in SPLITS.items()}


@pytest.fixture
def raw(tmp_path) -> Path:
    root = tmp_path / "raw"
    write_annotated_images(root)
    write_annotations(root)
    return root


def examples(data_dir: Path, *splits: str) -> dict[str, dict]:
    found = {}
    for split in splits or available(data_dir)["chexlocalize"]:
        found |= {e["image_id"]: e for e in open_source(data_dir, "chexlocalize", split)}
    return found


def planes(bits: np.ndarray) -> dict[str, np.ndarray]:
    assert bits.dtype == np.uint16
    masks = unpack(bits)
    return {name: masks[..., k] == 1 for k, name in enumerate(PATHOLOGIES) if masks[..., k].any()}


def assert_masks(bits: np.ndarray, **wanted: np.ndarray) -> None:
    found = planes(bits)
    assert sorted(found) == sorted(wanted)
    for name, mask in wanted.items():
        np.testing.assert_array_equal(found[name], mask)


def test_masks_lie_on_their_images_at_native_size(tmp_path, raw):
    prepare("chexlocalize", raw, tmp_path / "data")
    assert available(tmp_path / "data") == {"chexlocalize": ["expert_train", "expert_val", "test"]}
    experts = examples(tmp_path / "data", "expert_train", "expert_val")
    assert sorted(experts) == sorted(IDS["valid"][:-1])  # the fifth image has no masks
    for example in experts.values():
        assert (example["annotated"], example["benchmarked"]) == (True, False)
        assert example["image"].shape == (HEIGHT, WIDTH, 1)
        assert_masks(example["masks"], Cardiomegaly=HEART)
        assert_masks(example["reader_masks"])
    annotated, other, third, lateral = examples(tmp_path / "data", "test").values()
    assert (annotated["annotated"], annotated["benchmarked"]) == (True, True)
    assert_masks(annotated["masks"], Cardiomegaly=HEART)
    assert_masks(annotated["reader_masks"], **{"Support Devices": TUBE})
    assert (other["annotated"], other["benchmarked"], third["annotated"]) == (True, False, True)
    assert (lateral["image_id"], lateral["annotated"]) == (IDS["test"][-1], False)
    assert lateral["masks"].shape == (HEIGHT, WIDTH) and not lateral["masks"].any()
    assert annotated["labels"].tolist() == [1 if i == 5 else -2 for i in range(14)]


def test_images_may_be_beside_the_folder_of_the_masks(tmp_path):
    write_chexpert(tmp_path / "raw", "CheXpert-v1.0", ("valid", "test"))
    masks = write_annotations(tmp_path / "raw")
    for i, given_raw in enumerate((tmp_path / "raw", masks)):
        prepare("chexlocalize", given_raw, tmp_path / f"data{i}")
        found = examples(tmp_path / f"data{i}")
        assert sorted(found) == sorted(IDS["valid"][:-1] + IDS["test"])
        assert {example["sex"] for example in found.values()} == {"Female"}


def test_chexlocalizes_images_take_precedence_over_chexperts(tmp_path, raw):
    root = write_chexpert(raw, splits=("valid", "test"))
    for image_path in root.rglob("*.jpg"):
        write_image(image_path, size=(12, 16))
    prepare("chexlocalize", raw, tmp_path / "data")
    assert {e["image"].shape for e in examples(tmp_path / "data").values()} == {(HEIGHT, WIDTH, 1)}


def test_polygons_replace_missing_run_lengths(tmp_path, raw):
    square = [[[12.0, 10.0], [22.0, 10.0], [22.0, 18.0], [12.0, 18.0]]]
    annotated = {"img_size": [HEIGHT, WIDTH], "Cardiomegaly": square}
    content = json.loads((raw / VAL).read_text())
    (raw / VAL).unlink()
    write_json(raw / "CheXlocalize/gt_annotations_val.json", dict.fromkeys(content, annotated))
    prepare("chexlocalize", raw, tmp_path / "data")
    found = examples(tmp_path / "data", "expert_train", "expert_val")
    assert sorted(found) == sorted(content)
    for example in found.values():
        assert_masks(example["masks"], Cardiomegaly=HEART)


def test_polygons_of_nothing_are_empty_masks():
    np.testing.assert_array_equal(rasterise({"img_size": [3, 5]}), np.zeros((3, 5), np.uint16))


def test_hidden_masks_of_training_images_have_a_split_of_their_own(tmp_path, raw):
    write_chexpert(raw, splits=("train",))
    write_json(raw / HIDDEN, {IDS["train"][3]: {"Airspace Opacity": encode_rle(HEART)}})
    prepare("chexlocalize", raw, tmp_path / "data")
    (example,) = examples(tmp_path / "data", "hidden").values()
    assert example["image_id"] == IDS["train"][3]
    assert_masks(example["masks"], **{"Airspace Opacity": HEART})


def test_masks_are_resized_to_smaller_images_on_request_only(tmp_path, raw):
    for image_path in raw.rglob("*.jpg"):
        write_image(image_path, size=(HEIGHT // 2, WIDTH // 2))
    annotated = {"Cardiomegaly": encode_rle(rectangle(10, 12, 17, 21))}
    write_json(raw / VAL, dict.fromkeys(IDS["valid"][:-1], annotated))
    refusal = r"masks of 24 x 32 pixels on an image of 12 x 16 .*fit the masks with --resize-masks"
    with pytest.raises(DataError, match=refusal):
        prepare("chexlocalize", raw, tmp_path / "data")
    prepare("chexlocalize", raw, tmp_path / "data", resize_masks=True)
    write_image(raw / "CheXpert/test" / SPLITS["test"][0], size=(12, 24))
    with pytest.raises(DataError, match=r"image of 12 x 24 .*CheXpert/test$"):
        prepare("chexlocalize", raw, tmp_path / "other", resize_masks=True)  # another shape
    half = rectangle(5, 6, 8, 10, (12, 16))
    for example in examples(tmp_path / "data", "expert_train", "expert_val").values():
        assert_masks(example["masks"], Cardiomegaly=half)


def add(root: Path, file: str, name: str, annotation) -> None:
    content = json.loads((root / file).read_text())
    write_json(root / file, content | {name: annotation})


def share_patient(root: Path) -> None:
    write_image(root / "CheXpert/test/patient64542/study9/view1_frontal.jpg")
    edit(root / "CheXpert/test_labels.csv", "patient64742/study1", "patient64542/study9")


FIRST = IDS["valid"][0]
HEART_RLE = encode_rle(HEART)
FAULTS = {
    "size": (
        lambda root: write_image(root / "CheXpert/val" / SPLITS["valid"][0], size=(HEIGHT, 16)),
        [FIRST, "masks of 24 x 32", "image of 24 x 16", "val/patient64541", "CheXpert/val and"],
    ),
    "no such image": (
        lambda root: add(root, TEST, "patient1_study1_view1_frontal", {"Edema": HEART_RLE}),
        [TEST, "'patient1_study1_view1_frontal'", "test_labels.csv", "delete the entry"],
    ),
    "reader's image": (
        lambda root: add(root, "CheXlocalize/hb_segmentations_test.json", FIRST, {}),
        ["hb_segmentations_test.json", FIRST, "no image of that id"],
    ),
    "unknown pathology": (
        lambda root: add(root, VAL, FIRST, {"Oedema": HEART_RLE}),
        [VAL, FIRST, "unknown pathology 'Oedema'", "restore"],
    ),
    "unknown pathology in test": (
        lambda root: add(root, TEST, IDS["test"][0], {"Oedema": HEART_RLE}),
        [TEST, IDS["test"][0], "unknown pathology 'Oedema'", "restore"],
    ),
    "bad runs": (
        lambda root: add(root, TEST, IDS["test"][1], {"Edema": HEART_RLE | {"counts": "1"}}),
        [TEST, IDS["test"][1], "Edema", "do not add up"],
    ),
    "no counts": (
        lambda root: add(root, VAL, FIRST, {"Edema": {"size": [HEIGHT, WIDTH]}}),
        [VAL, FIRST, "Edema", "counts"],
    ),
    "no masks": (lambda root: add(root, VAL, FIRST, {}), [VAL, FIRST, "no masks"]),
    "no object": (lambda root: add(root, VAL, FIRST, [1]), [VAL, FIRST, "must be an object"]),
    "no JSON": (lambda root: (root / VAL).write_text("{"), [VAL, "not JSON", "restore"]),
    "a list": (lambda root: write_json(root / VAL, []), [VAL, "must be an object of images by id"]),
    "id twice": (
        lambda root: edit(root / VAL, IDS["valid"][1], FIRST),
        [VAL, FIRST, "twice", "delete one"],
    ),
    "no masks at all": (
        lambda root: [path.unlink() for path in (root / "CheXlocalize").iterdir()],
        ["no image has a mask", "gt_segmentations_val.json"],
    ),
    "patient in two splits": (
        share_patient,
        ["test_labels.csv, row 3", "patient64542", "val_labels.csv, row 3"],
    ),
    "truncated image": (
        lambda root: (root / "CheXpert/test" / SPLITS["test"][0]).write_bytes(b"\xff\xd8"),
        ["test/patient64741", "test_labels.csv, row 2", "truncated"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_invalid_input_is_named_and_leaves_nothing(tmp_path, raw, fault):
    spoil, fragments = FAULTS[fault]
    spoil(raw)
    (tmp_path / "kept").mkdir()
    with pytest.raises(DataError) as caught:
        prepare("chexlocalize", raw, tmp_path / "kept" / "data")
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
    shards = [path for path in below(tmp_path / "kept") if not path.startswith("data/.preparing-")]
    assert shards in ([], ["data"])


def test_presence_bits_need_no_pixels():
    annotation = {"Edema": encode_rle(HEART), "Lung Lesion": encode_rle(EMPTY)}
    assert presence_bits(annotation) == 1 << PATHOLOGIES.index("Edema")
    polygons = {"img_size": [4, 4], "Edema": [[[0, 0], [1, 1]]], "Cardiomegaly": []}
    assert presence_bits(polygons) == 1 << PATHOLOGIES.index("Edema")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["Edema", "Cardiomegaly", "?"]), JSON, min_size=1),
    st.booleans(),
)
def test_any_json_is_an_annotation_or_a_mask_error(annotation, polygons):
    if polygons:
        annotation = {"img_size": [4, 5], **annotation}
    try:
        bits = rasterise(annotation)
    except MaskError:
        return
    assert polygons and "?" not in annotation and bits.shape == (4, 5)


def test_a_contour_far_outside_the_image_is_refused():
    far = {"img_size": [4, 5], "Edema": [[[0, 0], [10.0**9, 0], [0, 3]]]}
    with pytest.raises(MaskError, match="Edema: a contour lies far outside"):
        rasterise(far)


def test_too_few_eligible_images_are_reported(tmp_path, raw, capsys):
    content = json.loads((raw / VAL).read_text())
    for name in content:  # all of one patient, who exceeds the target
        content[name] = {"Edema": HEART_RLE}
    lines = (raw / "CheXpert/val_labels.csv").read_text()
    for n in range(64542, 64545):
        lines = lines.replace(f"patient{n}/study1", f"patient64541/study{n}")
        old, new = raw / f"CheXpert/val/patient{n}/study1", f"patient64541/study{n}"
        old.rename(raw / "CheXpert/val" / new)
        name = f"patient{n}_study1_view1_frontal"
        content[f"patient64541_study{n}_view1_frontal"] = content.pop(name)
    (raw / "CheXpert/val_labels.csv").write_text(lines)
    write_json(raw / VAL, content)
    prepare("chexlocalize", raw, tmp_path / "data")
    assert available(tmp_path / "data")["chexlocalize"] == ["expert_train", "test"]
    assert "expert_val: 0 images rather than 1" in capsys.readouterr().out
