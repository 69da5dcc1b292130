import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import grain
import numpy as np
import pytest
from chexpert_trees import (
    SPLITS,
    below,
    edit,
    write_annotated_images,
    write_annotations,
    write_chexpert,
    write_image,
)

from datasets import tfds_builder
from datasets.__main__ import main
from datasets.errors import DataError
from datasets.prepare import _staging_folder, prepare, prepare_phantoms
from datasets.source import available, open_source

HOLD = """
import sys, time, pathlib
from datasets.prepare import _staging_folder
with _staging_folder(pathlib.Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    time.sleep(60)
"""
PHANTOMS = {"seed": 5, "train": 6, "valid": 12, "test": 4, "short_side": 64}


@pytest.fixture
def raw(tmp_path) -> Path:
    write_chexpert(tmp_path / "raw")
    write_annotated_images(tmp_path / "raw")
    write_annotations(tmp_path / "raw")
    return tmp_path / "raw"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fingerprints(data_dir: Path) -> dict[str, str]:
    return {
        f"{name}/{split}": open_source(data_dir, name, split).fingerprint
        for name, splits in available(data_dir).items()
        for split in splits
    }


def test_runs_of_items_stay_within_a_shard(monkeypatch):
    monkeypatch.setattr(tfds_builder, "SHARD_BYTES", 10)

    class Sized(int):
        @property
        def size(self) -> int:
            return int(self)

    items = [Sized(n) for n in (4, 6, 1, 30, 2, 8, 1)]
    assert [list(run) for run in tfds_builder.cut(items)] == [[4, 6], [1], [30], [2, 8], [1]]


@pytest.mark.parametrize(("name", "count"), [("chexpert", 8), ("chexlocalize", 5)])
def test_processes_write_what_one_writes(tmp_path, raw, monkeypatch, name, count):
    size = (raw / "CheXpert-v1.0-small/train" / SPLITS["train"][0]).stat().st_size
    monkeypatch.setattr(tfds_builder, "SHARD_BYTES", 2 * size)
    for workers in (0, 2):
        prepare(name, raw, tmp_path / f"data{workers}", workers=workers)
    alone, together = (contents(tmp_path / f"data{workers}") for workers in (0, 2))
    assert sum("array_record" in file for file in alone) == count
    assert alone == together


def test_an_error_in_a_worker_is_named_and_leaves_nothing(tmp_path, raw, monkeypatch):
    monkeypatch.setattr(tfds_builder, "SHARD_BYTES", 1)
    for n in (4, 1):  # the first in the table's order is reported
        image_path = raw / "CheXpert-v1.0-small/train" / SPLITS["train"][n]
        image_path.write_bytes(image_path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"train\.csv, row 3, column Path\).*truncated"):
        prepare("chexpert", raw, tmp_path / "data", workers=2)
    assert below(tmp_path) == ["raw", *(f"raw/{path}" for path in below(raw))]


def dies(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_reported_and_leaves_nothing(tmp_path, raw, monkeypatch):
    monkeypatch.setattr(tfds_builder, "write_shard", dies)
    with pytest.raises(DataError, match=r"a worker process was killed, .* use fewer --workers"):
        prepare("chexpert", raw, tmp_path / "data", workers=2)
    assert below(tmp_path) == ["raw", *(f"raw/{path}" for path in below(raw))]


@pytest.mark.parametrize("kind", ["cut", "emptied", "overwritten"])
def test_records_corrupted_while_open_are_named(tmp_path, raw, kind):
    prepare("chexpert", raw, tmp_path / "data")
    source = open_source(tmp_path / "data", "chexpert", "train")
    source[0]
    (path,) = (tmp_path / "data").rglob("*-train.array_record*")
    content = path.read_bytes()
    corrupted = {"cut": content[:200], "emptied": b"", "overwritten": bytes(len(content))}
    with path.open("r+b") as file:  # in place: the source has it open
        file.write(corrupted[kind])
        file.truncate(len(corrupted[kind]))
    with pytest.raises(DataError, match=rf"{path.parent}: its records are missing or truncated"):
        [source[i] for i in range(len(source))]


def test_sources_are_indexable_picklable_and_read_by_grain(tmp_path, raw):
    prepare("chexlocalize", raw, tmp_path / "data")
    source = open_source(tmp_path / "data", "chexlocalize", "test")
    copy = pickle.loads(pickle.dumps(source))
    shuffled = grain.MapDataset.source(source).shuffle(seed=1)
    seen = set()
    for i in range(len(source)):
        assert source[np.int64(i)]["image_id"] == copy[i]["image_id"] == source.image_ids[i]
        np.testing.assert_array_equal(source[i]["image"], copy[i]["image"])
        seen.add(shuffled[i]["image_id"])
    assert seen == set(source.image_ids)
    for outside in (len(source), -1):
        with pytest.raises(IndexError):
            source[outside]


def test_a_fingerprint_depends_on_the_contents_of_its_split_alone(tmp_path, raw):
    def prepared(where: str) -> dict[str, str]:
        for name in ("chexpert", "chexlocalize"):
            prepare(name, raw, tmp_path / where)
        return fingerprints(tmp_path / where)

    before = prepared("before")
    assert len(set(before.values())) == 6
    raw.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(raw)
    assert prepared("again") == before

    edit(raw / "CheXpert-v1.0-small/train.csv", "Female", "Male", 1)
    relabelled = prepared("relabelled")
    changed = {name for name in before if before[name] != relabelled[name]}
    assert changed == {"chexpert/train"}

    write_image(raw / "CheXpert/test" / SPLITS["test"][0], seed=99)
    repainted = prepared("repainted")
    changed = {name for name in before if relabelled[name] != repainted[name]}
    assert changed == {"chexpert/test", "chexlocalize/test"}


def test_existing_data_is_not_overwritten(tmp_path, raw):
    prepare("chexpert", raw, tmp_path / "data")
    before = contents(tmp_path / "data")
    with pytest.raises(DataError, match="is there already; remove it"):
        prepare("chexpert", raw, tmp_path / "data")
    assert contents(tmp_path / "data") == before


def test_missing_data_is_reported_with_the_command(tmp_path, raw):
    assert available(tmp_path / "data") == {}
    command = r"run `python -m datasets chexpert --raw DIR --data-dir .*data`"
    with pytest.raises(DataError, match=f"has not been prepared; {command}"):
        open_source(tmp_path / "data", "chexpert", "train")
    prepare("chexpert", raw, tmp_path / "data")
    with pytest.raises(DataError, match=f"no split 'exam', only train, valid, test.*{command}"):
        open_source(tmp_path / "data", "chexpert", "exam")
    with pytest.raises(DataError, match="choose one of chexpert, chexlocalize"):
        open_source(tmp_path / "data", "mnist", "train")


@pytest.mark.parametrize("made", [False, True])
def test_an_empty_or_missing_raw_folder_is_reported(tmp_path, made):
    if made:
        (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match="no such folder, or empty; give --raw"):
        prepare("chexpert", tmp_path / "raw", tmp_path / "data")


def test_a_folder_without_tables_is_reported(tmp_path):
    (tmp_path / "raw" / "CheXpert").mkdir(parents=True)
    with pytest.raises(DataError, match=r"neither train\.csv.*give --raw"):
        prepare("chexpert", tmp_path / "raw", tmp_path / "data")


def test_phantoms_are_written_once_and_again_for_other_arguments(tmp_path):
    data_dir = tmp_path / "new" / "phantoms"
    prepare_phantoms(data_dir, **PHANTOMS)
    assert {name: len(splits) for name, splits in available(data_dir).items()} == {
        "chexpert": 3,
        "chexlocalize": 4,
    }
    assert len(open_source(data_dir, "chexpert", "train")) == PHANTOMS["train"]
    example = open_source(data_dir, "chexlocalize", "expert_train")[0]
    assert min(example["image"].shape[:2]) == PHANTOMS["short_side"]
    assert example["masks"].any()
    made, first = data_dir.stat(), fingerprints(data_dir)

    prepare_phantoms(data_dir, **PHANTOMS)
    assert data_dir.stat() == made

    prepare_phantoms(data_dir, **PHANTOMS | {"seed": 6})
    second = fingerprints(data_dir)
    assert all(first[name] != second[name] for name in first.keys() & second.keys())
    assert below(tmp_path / "new")[0] == "phantoms"  # nothing beside it, hidden or not


def test_phantoms_do_not_replace_other_things(tmp_path, raw):
    prepare("chexpert", raw, tmp_path / "data")
    before = contents(tmp_path / "data")
    with pytest.raises(DataError, match="holds other things than phantoms"):
        prepare_phantoms(tmp_path / "data", **PHANTOMS)
    assert contents(tmp_path / "data") == before


def test_the_command_prepares_and_counts(tmp_path, raw, capsys):
    data = ["--data-dir", str(tmp_path / "data")]
    assert main(["chexpert", "--raw", str(raw), *data]) == 0
    assert main(["chexlocalize", "--raw", str(raw), *data, "--resize-masks"]) == 0
    said = capsys.readouterr().out
    assert "chexpert: train 6, valid 5, test 4" in said
    assert "chexlocalize: expert_train 3, expert_val 1, test 4" in said
    assert main(["chexpert", "--raw", str(raw), *data]) == 1
    assert "error:" in (error := capsys.readouterr().err) and "is there already" in error


def test_the_command_makes_phantoms(tmp_path, capsys):
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in PHANTOMS.items()]
    assert main(["phantom", "--data-dir", str(tmp_path / "data"), *sizes]) == 0
    assert "chexpert: train 6, valid 12, test 4" in capsys.readouterr().out
    for wrong in (["--train=-1"], ["--workers=-1"], ["--seed=x"]):
        with pytest.raises(SystemExit):
            main(["phantom", "--data-dir", str(tmp_path / "data"), *wrong])


def test_the_folder_of_a_killed_preparation_is_deleted(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        os.utime(left, (0, 0))
        with _staging_folder(tmp_path) as mine:
            assert left.is_dir() and mine != left  # its process is alive
        process.kill()
    assert left.is_dir()
    with _staging_folder(tmp_path) as mine:
        assert [*tmp_path.glob(".preparing-*")] == [mine]
    assert not [*tmp_path.glob(".preparing-*")]
