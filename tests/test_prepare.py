import csv
import fcntl
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
    image_id,
    write_annotated_images,
    write_annotations,
    write_chexpert,
    write_image,
)

from datasets import tfds_builder
from datasets.__main__ import main
from datasets.chexpert import ChexpertWeak
from datasets.errors import DataError, Fault
from datasets.prepare import _staging_folder, prepare, prepare_phantoms
from datasets.source import available, folder_of, open_source
from experiments.run.config import read_arguments
from experiments.run.data import open_all

HOLD = """
import sys, time, pathlib
from datasets.prepare import _staging_folder
with _staging_folder(pathlib.Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    time.sleep(60)
"""
STOP = """
import os, sys
from datasets import tfds_builder
from datasets.__main__ import main
from datasets.chexpert import ChexpertWeak

tfds_builder.SHARD_BYTES = 1
make = ChexpertWeak.make_example
images = []
def stop_at_the_ninth(item):
    images.append(item)
    if len(images) == 9:
        os.kill(os.getpid(), int(sys.argv[1]))
    return make(item)
ChexpertWeak.make_example = staticmethod(stop_at_the_ninth)
sys.exit(main(["chexpert", "--raw", sys.argv[2], "--data-dir", sys.argv[3]]))
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


def test_an_error_in_a_worker_is_named_and_leaves_finished_shards_alone(tmp_path, raw, monkeypatch):
    monkeypatch.setattr(tfds_builder, "SHARD_BYTES", 1)
    for n in (4, 1):  # the first in the table's order is reported
        image_path = raw / "CheXpert-v1.0-small/train" / SPLITS["train"][n]
        image_path.write_bytes(image_path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"train\.csv, row 3, column Path\).*truncated"):
        prepare("chexpert", raw, tmp_path / "data", workers=2)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".preparing-chexpert"]


def dies(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_reported_and_leaves_nothing(tmp_path, raw, monkeypatch):
    monkeypatch.setattr(tfds_builder, "SHARD_BYTES", 1)  # a single shard needs no worker
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


def test_the_folder_of_killed_phantoms_is_deleted(tmp_path):
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
        assert [*tmp_path.glob(".phantoms-*")] == [mine]
    assert not [*tmp_path.glob(".phantoms-*")]


def interrupt(monkeypatch, at: int) -> list[object]:
    """Raise KeyboardInterrupt at an image; the list returned grows with every image read."""
    make, seen = ChexpertWeak.make_example, []

    def counted(item):
        seen.append(item)
        if len(seen) == at:
            raise KeyboardInterrupt
        return make(item)

    monkeypatch.setattr(ChexpertWeak, "make_example", staticmethod(counted))
    return seen


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_preparation_goes_on_to_the_same_bytes(tmp_path, raw, monkeypatch, number):
    monkeypatch.setattr(tfds_builder, "SHARD_BYTES", 1)
    prepare("chexpert", raw, tmp_path / "unbroken")
    command = [sys.executable, "-c", STOP, str(int(number)), str(raw), str(tmp_path / "data")]
    stopped = subprocess.run(command, capture_output=True, text=True)
    assert stopped.returncode == (-9 if number == signal.SIGKILL else 143), stopped.stderr
    assert available(tmp_path / "data") == {}
    if number == signal.SIGTERM:
        assert "8 finished shards are kept, with which the same command goes on" in stopped.stderr
        assert "Traceback" not in stopped.stderr
    seen = interrupt(monkeypatch, at=0)
    prepare("chexpert", raw, tmp_path / "data")
    assert len(seen) == 15 - 8
    assert contents(tmp_path / "data") == contents(tmp_path / "unbroken")


def test_shards_of_changed_input_are_not_used_again(tmp_path, raw, monkeypatch, capsys):
    monkeypatch.setattr(tfds_builder, "SHARD_BYTES", 1)
    command = ["chexpert", "--raw", str(raw), "--data-dir", str(tmp_path / "data")]
    interrupt(monkeypatch, at=5)
    assert main(command) == 130
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(tfds_builder, "SHARD_BYTES", 1)
    edit(raw / "CheXpert-v1.0-small/train.csv", "Female", "Male", 1)
    write_image(raw / "CheXpert-v1.0-small/train" / SPLITS["train"][1], seed=99)
    seen = interrupt(monkeypatch, at=0)
    assert main(command) == 0
    assert len(seen) == 15 - 4 + 2
    prepare("chexpert", raw, tmp_path / "afresh")
    assert contents(tmp_path / "data") == contents(tmp_path / "afresh")


def test_a_preparation_killed_while_it_moves_its_result_goes_on(tmp_path, raw, monkeypatch):
    prepare("chexpert", raw, tmp_path / "unbroken")
    rename = Path.rename

    def killed(path: Path, target: Path) -> None:
        rename(path, target)
        if target == folder_of(tmp_path / "data", "chexpert"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare("chexpert", raw, tmp_path / "data")
    monkeypatch.undo()
    prepare("chexpert", raw, tmp_path / "data")
    assert contents(tmp_path / "data") == contents(tmp_path / "unbroken")
    with pytest.raises(DataError, match="is there already"):
        prepare("chexpert", raw, tmp_path / "data")


def test_a_second_preparation_is_refused_at_once(tmp_path, raw, capsys):
    lock = tmp_path / "data/.preparing-chexpert/.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["chexpert", "--raw", str(raw), "--data-dir", str(tmp_path / "data")]) == 1
        assert "another preparation is at work on it; wait" in capsys.readouterr().err
        prepare("chexlocalize", raw, tmp_path / "data")  # another data set
    prepare("chexpert", raw, tmp_path / "data")


def faults_in(data_dir: Path) -> list[dict[str, str]]:
    with (data_dir / "faults.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def spoil(raw: Path) -> Path:
    """Cut one image, remove one, and write a wrong label, each in another row of train.csv."""
    root = raw / "CheXpert-v1.0-small"
    cut = root / "train" / SPLITS["train"][1]
    cut.write_bytes(cut.read_bytes()[:300])
    (root / "train" / SPLITS["train"][2]).unlink()
    lines = (root / "train.csv").read_text().splitlines(keepends=True)
    lines[5] = lines[5].replace("Female", "F")
    (root / "train.csv").write_text("".join(lines))
    return cut


@pytest.mark.parametrize("workers", [0, 2])
def test_all_faults_are_listed_and_nothing_is_prepared(tmp_path, raw, workers, capsys):
    cut, table = spoil(raw), raw / "CheXpert-v1.0-small/train.csv"
    command = ["chexpert", "--raw", str(raw), "--data-dir", str(tmp_path / "data")]
    assert main([*command, "--on-fault", "list", f"--workers={workers}"]) == 1
    assert "3 faults in 15 rows" in capsys.readouterr().out
    assert [*(tmp_path / "data").iterdir()] == [tmp_path / "data/faults.csv"]
    sex, missing, truncated = faults_in(tmp_path / "data")
    assert (sex["file"], sex["row"], sex["column"]) == (str(table), "6", "Sex")
    assert "'F' is not known" in sex["reason"]
    assert (missing["row"], missing["column"]) == ("4", "Path")
    assert missing["table"] == truncated["table"] == str(table)
    assert "missing" in missing["reason"]
    assert (truncated["file"], truncated["row"]) == (str(cut), "3")
    assert "truncated" in truncated["reason"] and "0x" not in truncated["reason"]


def test_an_unusable_table_is_listed_with_the_others_faults(tmp_path, raw):
    spoil(raw)
    edit(raw / "CheXpert/test_labels.csv", "Fracture", "Fractured")
    faults = prepare("chexpert", raw, tmp_path / "data", on_fault="list")
    assert len(faults.found) == 4
    assert ("1", "'Fractured'") in [(f["row"], f["column"]) for f in faults_in(tmp_path / "data")]


def test_nothing_is_listed_of_sound_data(tmp_path, raw, capsys):
    command = ["--raw", str(raw), "--data-dir", str(tmp_path / "data"), "--on-fault", "list"]
    for name in ("chexpert", "chexlocalize"):
        assert main([name, *command]) == 0
        assert faults_in(tmp_path / "data") == []
        assert "0 faults in" in capsys.readouterr().out


def test_rows_with_faults_are_left_out_up_to_a_limit(tmp_path, raw, capsys):
    spoil(raw)
    command = ["chexpert", "--raw", str(raw), "--data-dir", str(tmp_path / "data")]
    skip = [*command, "--on-fault", "skip"]
    for limit in ("2", "0.1"):
        assert main([*skip, "--fault-limit", limit]) == 1
        assert "exceed the limit of" in (error := capsys.readouterr().err)
        assert "--fault-limit; the first is" in error and "train.csv, row 6" in error
    assert main([*skip, "--fault-limit", "3"]) == 0
    said = capsys.readouterr().out
    assert "3 of 15 rows are left out" in said and "train 3, valid 5, test 4" in said
    assert len(faults_in(tmp_path / "data")) == 3
    left = [image_id(SPLITS["train"][i]) for i in (0, 3, 5)]
    assert open_source(tmp_path / "data", "chexpert", "train").image_ids == left
    for wrong in ("-1", "1.5", "x"):
        with pytest.raises(SystemExit):
            main([*skip, "--fault-limit", wrong])


def test_masks_with_faults_are_left_out(tmp_path, raw):
    test = raw / "CheXlocalize/gt_segmentations_test.json"
    edit(test, "Cardiomegaly", "Cardiomegal", 1)
    edit(raw / "CheXlocalize/gt_segmentations_val.json", "patient64542", "patient9")
    faults = prepare("chexlocalize", raw, tmp_path / "data", on_fault="skip")
    entry, unknown = faults.found
    assert isinstance(entry, Fault) and entry.args[1] == "'patient9_study1_view1_frontal'"
    assert "unknown pathology 'Cardiomegal'" in str(unknown)
    splits = available(tmp_path / "data")["chexlocalize"]
    sizes = {name: len(open_source(tmp_path / "data", "chexlocalize", name)) for name in splits}
    assert sizes == {"expert_train": 2, "expert_val": 1, "test": 3}


def test_prepared_sets_are_joined(tmp_path, raw):
    prepare("chexpert", raw, tmp_path / "first")
    other = tmp_path / "other"
    write_chexpert(other, splits=("train",))
    for name in ("patient00001", "patient00002"):
        edit(other / "CheXpert-v1.0-small/train.csv", name, name.replace("0000", "9000"))
        folder = other / "CheXpert-v1.0-small/train" / name
        folder.rename(folder.with_name(name.replace("0000", "9000")))
    prepare("chexpert", other, tmp_path / "second")
    folders = [tmp_path / "first", tmp_path / "second"]
    with pytest.raises(DataError, match="patient00003_study1_view1_frontal is in the split train"):
        open_all(folders, "chexpert", "train")
    edit(other / "CheXpert-v1.0-small/train.csv", "patient00003", "patient90003")
    for n in (3, 4, 5):
        folder = other / f"CheXpert-v1.0-small/train/patient0000{n}"
        folder.rename(folder.with_name(f"patient9000{n}"))
        table = other / "CheXpert-v1.0-small/train.csv"
        table.write_text(table.read_text().replace(f"patient0000{n}", f"patient9000{n}"))
    prepare("chexpert", other, tmp_path / "third")
    folders[1] = tmp_path / "third"
    joined = open_all(folders, "chexpert", "train")
    assert len(joined) == len(joined.image_ids) == 12
    assert [joined[i]["image_id"] for i in range(12)] == joined.image_ids
    parts = [open_source(folder, "chexpert", "train") for folder in folders]
    assert joined.fingerprint == "+".join(part.fingerprint for part in parts)
    assert open_all(folders, "chexpert", "valid").fingerprint == (
        open_source(folders[0], "chexpert", "valid").fingerprint
    )
    with pytest.raises(IndexError):
        joined[12]
    with pytest.raises(DataError, match=r"first/chexpert_weak.*no split 'exam'"):
        open_all(folders, "chexpert", "exam")


def test_several_folders_of_data_are_flags_of_a_run():
    assert read_arguments("", ["--data-dir", "a", "b", "--seed", "3"]).data_dir == (
        Path("a"),
        Path("b"),
    )
    assert read_arguments("", ["--data-dir", "data"]).data_dir == (Path("data"),)
