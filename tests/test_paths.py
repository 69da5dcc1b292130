"""Hostile paths in a table: each is refused by row and column, and nothing outside is touched."""

import os
from pathlib import Path

import pytest
from chexpert_trees import write_image, write_table

from datasets.errors import DataError
from datasets.films import find_films, read_picture
from datasets.layout import Table
from datasets.tables import read_rows

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
    """Returns every file and folder below a folder, with its size and its time of change."""
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
        find_films(table, read_rows(table.csv, "train"), root, progress=False)
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
    (film,) = find_films(table, read_rows(table.csv, "train"), root, progress=False)
    with pytest.raises(DataError, match=r"row 2, column Path\): .*leaves the root"):
        read_picture(film)
