import json

import numpy as np
import pytest

from chexseg_jax.evaluation.chexlocalize import ChexlocalizeError, read_thresholds, write_thresholds
from chexseg_jax.pathologies import PATHOLOGIES

VALUES = np.arange(1, 11) / 20


def test_thresholds_there_and_back(tmp_path):
    write_thresholds(tmp_path / "thresholds.csv", VALUES)
    np.testing.assert_array_equal(read_thresholds(tmp_path / "thresholds.csv"), VALUES)
    first = (tmp_path / "thresholds.csv").read_text().splitlines()[:2]
    assert first == ["threshold,task", "0.2,Airspace Opacity"]


def test_the_releases_thresholds_are_a_list_in_the_order_of_masks(tmp_path):
    (tmp_path / "thresholds.txt").write_text(json.dumps(VALUES.tolist()))
    np.testing.assert_array_equal(read_thresholds(tmp_path / "thresholds.txt"), VALUES)


def test_what_was_not_found_has_no_threshold(tmp_path):
    values = np.where(np.arange(10) == 3, np.nan, VALUES)
    write_thresholds(tmp_path / "t.csv", values)
    assert ",Airspace Opacity" in (tmp_path / "t.csv").read_text().splitlines()
    np.testing.assert_array_equal(read_thresholds(tmp_path / "t.csv"), values)
    (tmp_path / "t.txt").write_text(json.dumps([0, None, *VALUES[2:]]))
    found = read_thresholds(tmp_path / "t.txt")
    np.testing.assert_array_equal(found, [np.nan, np.nan, *VALUES[2:]])


def test_cheXlocalizes_spelling_is_read(tmp_path):
    names = ["Lung Opacity" if name == "Airspace Opacity" else name for name in PATHOLOGIES]
    lines = [f"{value},{name}" for value, name in zip(VALUES, names, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["threshold,task", *lines]))
    np.testing.assert_array_equal(read_thresholds(tmp_path / "t.csv"), VALUES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[0.1, 0.2]", "not a threshold for each"),
        ("[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]", r"outside \[0, 1\]"),
        ("threshold,task\n0.1,Edema", "not a threshold for each"),
        ("threshold,task\nhigh,Edema", "not a threshold for each"),
        ("[0, 0, 0, 0, 0, 0, 0, 0, 0, -1]", r"outside \[0, 1\]"),
        ("", "not a threshold for each"),
    ],
)
def test_what_is_no_thresholds_is_refused(tmp_path, text, said):
    path = tmp_path / "thresholds.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"thresholds\.txt: .*{said}"):
        read_thresholds(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        b"[" + b"9" * 400 + b"]",
        b"[" + b",".join([b"1" + b"0" * 400] * 10) + b"]",
        json.dumps([[0.5]] * 10).encode(),
        b"threshold,task\n0.5\n",
        b'threshold,task\n"' + b"a" * 200_000 + b'",Edema\n',
    ],
    ids=range(7),
)
def test_damaged_thresholds_are_refused_by_name(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ChexlocalizeError, match=r"t\.csv: "):
        read_thresholds(path)
    with pytest.raises(ChexlocalizeError, match=r"none\.csv: cannot be read"):
        read_thresholds(tmp_path / "none.csv")
