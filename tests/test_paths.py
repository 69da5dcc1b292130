"""Hostile paths and names in tables, JSON and archives: nothing outside is touched."""

import os
from pathlib import Path

import numpy as np
import pytest
from chexpert_trees import write_image, write_json, write_table
from test_torch_checkpoint import archive, state, tensor

from chexseg_jax.masks import encode_rle
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.weights.torch_checkpoint import read_torch
from datasets.chexpert.csv_table import read_rows
from datasets.chexpert.images import find_listed_images, read_gray_jpeg
from datasets.chexpert.layout import Table
from datasets.errors import DataError
from experiments.evaluate import main as evaluate

FILM = "patient00001/study1/view1_frontal.jpg"
HOSTILE = [
    "",
    ".",
    "..",
    "~",
    "/",
    "\\",
    "../outside/" + FILM,
    "train/../../outside/" + FILM,
    "train/../" + FILM,
    "/outside/" + FILM,
    "//outside/share/" + FILM,
    "C:\\" + FILM,
    "\\\\outside\\share\\" + FILM,
    "..\\outside\\" + FILM,
    FILM.replace("/", "\\"),
    "patient00001/study1/..",
    "patient00001/../view1_frontal.jpg",
    "patient00001/study1/../study1/view1_frontal.jpg",
    "patient00001/./view1_frontal.jpg",
    "patient00001//view1_frontal.jpg",
    "patient00001/~/view1_frontal.jpg",
    "patient00001/study1/view1_frontal.jpg\0.png",
    "patient00001\0/study1/view1_frontal.jpg",
    "patient00001/study1/view1_frontal.jpg\n",
    "patient00001\n/study1/view1_frontal.jpg",
    FILM + " ",
    FILM + ".",
    FILM + "/",
    " " + FILM,
    FILM.replace("/", "\uff0f"),
    FILM.replace("/", "\u2215"),
    "\uff0e\uff0e/study1/view1_frontal.jpg",
    "patient\u0661/study1/view1_frontal.jpg",
    "%2e%2e/study1/view1_frontal.jpg",
    "patient00001%2f..%2fstudy1/view1_frontal.jpg",
    "patient00001/study1/CON",
    "patient00001/study1/view1_frontal.jpg:stream",
    "/dev/zero",
    "patient" + "1" * 300 + "/study1/view1_frontal.jpg",
    "file:///outside/" + FILM,
]


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return every file and folder below a folder, with its size and modification time."""
    found = {os.fspath(path): path.lstat() for path in folder.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.mark.parametrize("path", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_path_is_refused_and_nothing_outside_is_touched(tmp_path, path):
    root, canary = tmp_path / "raw", tmp_path / "outside" / FILM
    write_image(root / "train" / FILM)
    write_image(canary, seed=1)
    write_table(root / "train.csv", [path])
    before = listing(tmp_path)
    table = Table("train", root / "train.csv", (root / "train",))
    with pytest.raises(DataError, match=r"train\.csv, row [0-9]+"):
        find_listed_images(table, read_rows(table.csv, "train"), root, progress=False)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("linked", [FILM, "patient00001/study1", "patient00001"])
def test_a_link_out_of_the_root_is_refused(tmp_path, linked):
    root, outside = tmp_path / "raw", tmp_path / "raw-outside"  # begins like the root's own name
    write_image(outside / FILM)
    link = root / "train" / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / linked)
    write_table(root / "train.csv", [FILM])
    table = Table("train", root / "train.csv", (root / "train",))
    (film,) = find_listed_images(table, read_rows(table.csv, "train"), root, progress=False)
    with pytest.raises(DataError, match=r"row 2, column Path\): .*leaves the root"):
        read_gray_jpeg(film)


NAMES = [
    "../../x",
    "/x",
    "..",
    "x/../../y",
    "C:\\x",
    "~/x",
    "x\0y",
    "x\ny",
    "=1+1",
    "<b>",
    "CON",
    "",
]


def outside(folder: Path, out: Path) -> dict[str, tuple[int, int]]:
    """Return what is below a folder, except the folder of results and its content."""
    found = listing(folder)
    del found[os.fspath(folder / "inner")]  # `out` appears in it
    return {name: seen for name, seen in found.items() if not Path(name).is_relative_to(out)}


def test_image_ids_that_are_paths_name_no_file(tmp_path):
    (tmp_path / "inner").mkdir()
    out = tmp_path / "inner" / "out"
    masks = dict.fromkeys(PATHOLOGIES, encode_rle(np.eye(4) > 0))
    write_json(tmp_path / "masks.json", dict.fromkeys(NAMES, masks))
    before = outside(tmp_path, out)
    evaluate(
        [f"--gt={tmp_path / 'masks.json'}", f"--pred={tmp_path / 'masks.json'}", f"--out={out}"]
    )
    assert outside(tmp_path, out) == before
    assert all(path.parent == out for path in out.rglob("*"))


def test_names_in_an_archive_are_never_written(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    program = state(a=tensor("../../x", (2,), (1,), 2))
    path = archive(tmp_path / "a.pth", program, {"../../x": np.ones(2, np.float32)})
    before = listing(tmp_path)
    assert read_torch(path)["a"].tolist() == [1, 1]
    assert listing(tmp_path) == before
