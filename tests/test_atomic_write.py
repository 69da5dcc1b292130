"""Full and failing disks, stale parts of killed processes, and corrupt shards."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chexseg_jax.runtime import atomic_write
from chexseg_jax.runtime.atomic_write import (
    CorruptFile,
    WriteError,
    explain_write_errors,
    remove_stale_parts,
)
from chexseg_jax.runtime.stage_folder import (
    RecordReader,
    open_stage_folder,
    write_json,
    write_records,
)

LIMITED = """
import pathlib, resource, signal, sys
import jax.numpy as jnp, numpy as np
from chexseg_jax.runtime.stage_folder import write_json, write_records
from chexseg_jax.training.checkpoints import write_tree
from experiments.run.cli import managed_run

folder, what = pathlib.Path(sys.argv[1]), sys.argv[2]
numbers = np.random.default_rng(0).normal(size=50_000)
work = {
    "json": lambda: write_json(folder / "new", ["x" * 1000] * 1000),
    "records": lambda: write_records(folder / "new", [{"x": numbers}] * 4),
    "checkpoint": lambda: write_tree(folder / "new", {"a": jnp.array(numbers)}),
    "arrays": lambda: write_tree(folder / "new", {str(i): jnp.array(numbers) for i in range(50)}),
}[what]
with managed_run(folder):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    work()
"""


@pytest.mark.parametrize("what", ["json", "records", "checkpoint", "arrays"])
def test_a_file_that_finds_no_room_is_one_sentence_and_leaves_the_others(tmp_path, what):
    (tmp_path / "old").write_text("kept")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), what], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"{tmp_path}/new: File too large; allow larger files" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob("*.part"))
    assert (tmp_path / "old").read_text() == "kept"


@pytest.mark.parametrize("number", sorted(atomic_write.REMEDIES))
def test_a_sync_that_fails_leaves_what_was_there(tmp_path, monkeypatch, number):
    path = tmp_path / "a.json"
    write_json(path, 1)

    def fails(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic_write.os, "fsync", fails)
    with pytest.raises(WriteError, match=re.escape(f"{path}: {os.strerror(number)}")):
        write_json(path, 2)
    assert path.read_text() == "1\n" and list(tmp_path.iterdir()) == [path]


def test_other_errors_are_left_as_they_are(tmp_path):
    with pytest.raises(ValueError, match=r"^shape$"), explain_write_errors(tmp_path):
        raise ValueError("shape")
    with pytest.raises(FileNotFoundError), explain_write_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "No such file", "a")


def test_a_name_is_synced_with_its_folder(tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def noted(handle):
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        sync(handle)

    monkeypatch.setattr(atomic_write.os, "fsync", noted)
    write_json(tmp_path / "a.json", 1)
    assert len(synced) == 2 and synced[1] == str(tmp_path)


def test_leavings_of_the_dead_are_swept_and_those_of_the_living_kept(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    host = atomic_write._owner("").removesuffix("-")
    dead, here, there = (
        tmp_path / f".a.json.{owner}.part"
        for owner in (f"{host}-{process.pid}", f"{host}-{os.getpid()}", "elsewhere-1")
    )
    for path in (dead, here, there):
        path.write_text("half")
    remove_stale_parts(tmp_path)
    assert set(tmp_path.iterdir()) == {here, there}
    remove_stale_parts(tmp_path, all_hosts=True)
    assert not list(tmp_path.iterdir())


def test_opening_and_finishing_a_folder_sweep_it(tmp_path):
    folder = open_stage_folder(tmp_path, "seed", 1, {}, {})
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    (folder.path / f".a.{atomic_write._owner(process.pid)}.part").write_text("half")
    open_stage_folder(tmp_path, "seed", 1, {}, {})
    assert not list(folder.path.iterdir())
    (folder.path / ".a.elsewhere-1.part").write_text("half")
    folder.finish()
    assert [path.name for path in folder.path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("harm", ["gone", "cut short"])
def test_a_shard_of_a_finished_stage_that_is_harmed_is_named(tmp_path, harm):
    folder = open_stage_folder(tmp_path, "seed", 1, {}, {})
    paths = [folder.path / f"seeds-0000{i}-of-00002.arrayrecord" for i in range(2)]
    for path in paths:
        write_records(path, [{"x": np.arange(1000)}] * 3)
    folder.finish()
    assert len(RecordReader(folder, "seeds")) == 6
    if harm == "gone":
        paths[1].unlink()
    else:
        paths[1].write_bytes(paths[1].read_bytes()[:-100])
    with pytest.raises(CorruptFile, match=f"{paths[1]}: {harm}; delete {folder.path}"):
        RecordReader(folder, "seeds")


def test_a_folder_is_complete_or_missing(tmp_path):
    with pytest.raises(RuntimeError), atomic_write.atomic_folder(tmp_path / "a") as aside:
        (aside / "one").write_text("1")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()  # an empty folder is replaced
    with atomic_write.atomic_folder(tmp_path / "a") as aside:
        (aside / "one").write_text("1")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "one"]
