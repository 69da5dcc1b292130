import numpy as np
import pytest

from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.pseudolabels.storage import PseudoMasks, PseudoMaskSource, write_pseudo_masks
from chexseg_jax.runtime.atomic_write import CorruptFile
from chexseg_jax.runtime.stage_folder import open_stage_folder, write_records

SIZE, MASKS = 8, "masks-00000-of-00001.arrayrecord"
EVERY = np.ones(len(PATHOLOGIES), bool)
HEART, MEDIASTINUM = (PATHOLOGIES.index(n) for n in ("Cardiomegaly", "Enlarged Cardiomediastinum"))


def drawn(**levels):
    """Masks with a square of a level for some pathologies."""
    masks = np.zeros((SIZE, SIZE, len(PATHOLOGIES)), np.uint8)
    for name, level in levels.items():
        masks[2:5, 3:6, PATHOLOGIES.index(name)] = level
    return masks


@pytest.fixture
def folder(tmp_path):
    folder = open_stage_folder(tmp_path, "label", 1, {}, {})
    images = []
    for name in ("a", "b"):
        image = PseudoMasks.blank(name, np.array([8, 8]), np.arange(len(PATHOLOGIES)) == 0)
        image.draw(drawn(Edema=255, Pneumothorax=100), EVERY)
        images.append(image)
    write_pseudo_masks(folder.path / MASKS, images)
    folder.finish(images=2)
    return folder


def test_masks_come_back_as_they_were_drawn(folder):
    masks, valid = PseudoMaskSource(folder).letterboxed(1, "b", SIZE)
    np.testing.assert_array_equal(masks, drawn(Edema=255, Pneumothorax=100))
    assert valid.tolist() == [False] + [True] * (len(PATHOLOGIES) - 1)
    hard, valid = PseudoMaskSource(folder)[1].hard(SIZE)
    np.testing.assert_array_equal(hard, drawn(Edema=1))
    assert not valid[0]


def test_the_padding_is_not_stored():
    image = PseudoMasks.blank("a", np.array([16, 8]), ~EVERY)  # 8 x 4 in a letterbox of 8
    image.draw(np.full((SIZE, SIZE, len(PATHOLOGIES)), 255, np.uint8), EVERY)
    assert {plane.shape for plane in image.planes.values()} == {(8, 4)}
    masks, _ = image.letterboxed(SIZE)
    assert (masks[:, 2:6] == 255).all() and masks.sum() == 255 * 8 * 4 * len(PATHOLOGIES)


def test_only_present_findings_are_drawn_and_the_mediastinum_contains_the_heart():
    image = PseudoMasks.blank("a", np.array([8, 8]), ~EVERY)
    masks = drawn(Cardiomegaly=200, Edema=255)
    masks[0, 0, MEDIASTINUM] = 90
    image.draw(masks, np.arange(len(PATHOLOGIES)) == HEART)
    assert set(image.planes) == {"Cardiomegaly", "Enlarged Cardiomediastinum"}
    assert image.planes["Enlarged Cardiomediastinum"].sum() == 9 * 200
    image.draw(masks, np.isin(np.arange(len(PATHOLOGIES)), (HEART, MEDIASTINUM)))
    assert image.planes["Enlarged Cardiomediastinum"].sum() == 9 * 200 + 90


def record(**changes):
    """The arrays of a record, with some replaced or, for None, left out."""
    arrays = {
        "image_id": np.array("a"),
        "native": np.array([8, 8], np.int32),
        "ignored": ~EVERY,
        "drawn": np.array([4], np.uint8),
        "planes": np.ones((1, 8, 8), np.uint8),
        **changes,
    }
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize(
    "harm",
    [
        {"planes": None},
        {"planes": np.ones((2, 8, 8), np.uint8)},
        {"planes": np.ones((1, 9, 8), np.uint8)},
        {"drawn": np.array([10], np.uint8)},
        {"native": np.array([8], np.int32)},
    ],
    ids=["field", "count", "size", "name", "native"],
)
def test_a_harmed_record_is_named_with_the_folder_to_delete(tmp_path, harm):
    folder = open_stage_folder(tmp_path, "label", 1, {}, {})
    write_records(folder.path / MASKS, [record(), record(**harm)])
    folder.finish(images=2)
    source = PseudoMaskSource(folder)
    source.letterboxed(0, "a", SIZE)
    with pytest.raises(CorruptFile, match=rf"record 2 .*; delete {folder.path} and run the same"):
        source.letterboxed(1, "a", SIZE)


def test_a_file_of_other_bytes_is_refused(folder):
    path = folder.path / MASKS
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptFile, match=str(folder.path)):
        PseudoMaskSource(folder)


def test_a_record_of_another_image_is_refused(folder):
    with pytest.raises(CorruptFile, match="record 1 is of a, its image is b"):
        PseudoMaskSource(folder).letterboxed(0, "b", SIZE)
