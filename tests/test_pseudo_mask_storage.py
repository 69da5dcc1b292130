import json

import numpy as np
import pytest

from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.pseudolabels.storage import PseudoMasks, PseudoMaskSource, write_pseudo_masks
from chexseg_jax.runtime.atomic_write import CorruptFile
from chexseg_jax.runtime.stage_folder import open_stage_folder

SIZE = 8


@pytest.fixture
def folder(tmp_path):
    folder = open_stage_folder(tmp_path, "label", 1, {}, {})
    drawn = np.zeros((SIZE, SIZE, len(PATHOLOGIES)), bool)
    drawn[2:5, 3:6, 4] = True
    images = []
    for name in ("a", "b"):
        image = PseudoMasks.blank(name, np.array([8, 8]), np.arange(len(PATHOLOGIES)) == 0)
        image.draw(drawn, np.ones(len(PATHOLOGIES), bool))
        images.append(image)
    write_pseudo_masks(folder.path / "masks-00000-of-00001.jsonl", images, SIZE)
    folder.finish(images=2)
    return folder


def test_masks_come_back_as_they_were_drawn(folder):
    masks, valid = PseudoMaskSource(folder).letterboxed(1, "b", SIZE)
    assert masks[2:5, 3:6, 4].all() and masks.sum() == 9
    assert valid.tolist() == [False] + [True] * (len(PATHOLOGIES) - 1)


def harmed(row, how):
    """The second line, harmed: as text, as a mask, as a size."""
    rle = row["rle"][PATHOLOGIES[4]]
    match how:
        case "text":
            return json.dumps(row)[:-9]
        case "kind":
            return "[]"
        case "field":
            del row["rle"]
        case "counts":
            rle["counts"] = rle["counts"][:-1]
        case "size":
            rle["size"] = [9, 8]
        case "name":
            row["rle"] = {"Fracture": rle}
    return json.dumps(row)


@pytest.mark.parametrize("how", ["text", "kind", "field", "counts", "size", "name"])
def test_a_harmed_line_is_named_with_the_folder_to_delete(folder, how):
    path = folder.path / "masks-00000-of-00001.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{harmed(json.loads(second), how)}\n")
    source = PseudoMaskSource(folder)
    source.letterboxed(0, "a", SIZE)
    with pytest.raises(
        CorruptFile, match=rf"{path}: line 2 .*; delete {folder.path} and run the same"
    ):
        source.letterboxed(1, "b", SIZE)


def test_a_line_of_another_image_is_refused(folder):
    with pytest.raises(CorruptFile, match="line 1 is of a, its image is b"):
        PseudoMaskSource(folder).letterboxed(0, "b", SIZE)
