import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from chexseg_jax.runtime.atomic_write import atomic_write
from chexseg_jax.runtime.stage_folder import (
    RecordReader,
    digest_file,
    missing_shards,
    open_stage_folder,
    read_manifest,
    shards,
    write_json,
    write_records,
)
from experiments.prediction.trained import find_trained
from experiments.report.build import siblings


@dataclass(frozen=True)
class Settings:
    rate: float = 0.1


def test_a_fingerprint_follows_settings_inputs_version_and_stage(tmp_path):
    def name(stage="seed", version=1, rate=0.1, **inputs):
        return open_stage_folder(tmp_path, stage, version, Settings(rate), inputs).path.name

    assert name() == name()
    names = {name(), name(version=2), name(rate=0.2), name(cams="a"), name(cams="b"), name("label")}
    assert len(names) == 6


def test_a_folder_is_finished_by_its_manifest(tmp_path):
    folder = open_stage_folder(tmp_path, "seed", 1, Settings(), {"cams": "abc"})
    assert not folder.finished
    folder.finish(images=3)
    again = open_stage_folder(tmp_path, "seed", 1, Settings(), {"cams": "abc"})
    assert again.finished
    assert again.manifest["images"] == 3
    assert again.manifest["settings"] == {"rate": 0.1}
    assert again.manifest["inputs"] == {"cams": "abc"}


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "masks.jsonl"
    with pytest.raises(RuntimeError), atomic_write(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_write(path) as aside:
        aside.write_text("all")
        assert not path.exists()
    assert path.read_text() == "all"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": [float("nan"), np.float32(0.5), np.int64(2)]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, 0.5, 2]}


def test_shards_cover_everything_once():
    parts = shards(600)
    assert [len(part) for part in parts] == [256, 256, 88]
    assert [i for part in parts for i in part] == list(range(600))
    assert shards(0) == []


def test_processes_share_the_shards_and_skip_what_is_there(tmp_path, monkeypatch):
    folder = open_stage_folder(tmp_path, "localize", 1, Settings(), {})
    monkeypatch.setattr("jax.process_count", lambda: 2)
    names = []
    for index in (0, 1):
        monkeypatch.setattr("jax.process_index", lambda index=index: index)
        names += [path.name for path, _ in missing_shards(folder, "cams", 600, "npz")]
    assert sorted(names) == [f"cams-{i:05d}-of-00003.npz" for i in range(3)]
    (folder.path / names[-1]).touch()
    assert list(missing_shards(folder, "cams", 600, "npz")) == []


def test_records_come_back_by_index_over_shards(tmp_path):
    folder = open_stage_folder(tmp_path, "localize", 1, Settings(), {})
    for shard in range(2):
        path = folder.path / f"cams-{shard:05d}-of-00002.arrayrecord"
        rows = [{"index": np.array(10 * shard + i), "id": np.array(f"p{i}")} for i in range(3)]
        write_records(path, rows)
    records = RecordReader(folder, "cams")
    assert len(records) == 6
    assert [int(records[i]["index"]) for i in range(6)] == [0, 1, 2, 10, 11, 12]
    assert str(records[4]["id"]) == "p1"


def test_a_shard_may_hold_nothing(tmp_path):
    folder = open_stage_folder(tmp_path, "seed", 1, Settings(), {})
    for shard, rows in enumerate([[], [{"index": np.array(3)}], []]):
        write_records(folder.path / f"seeds-{shard:05d}-of-00003.arrayrecord", rows)
    records = RecordReader(folder, "seeds")
    assert len(records) == 1 and int(records[0]["index"]) == 3


def test_a_file_is_known_by_its_content(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"abc")
    second.write_bytes(b"abd")
    # FIPS 180-2, appendix B.1.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_file(first) == known
    assert digest_file(second) != known


def test_the_manifest_tells_version_and_where_weights_are_from(tmp_path):
    origins = {"init": {"source": "hf://a/b", "revision": "c0ffee", "sha256": "abc"}}
    folder = open_stage_folder(tmp_path, "seed", 3, Settings(), {}, origins)
    folder.finish()
    assert folder.manifest["version"] == 3 and folder.manifest["weights"] == origins
    assert open_stage_folder(tmp_path, "seed", 3, Settings(), {}).finished
    assert read_manifest(folder.path) == folder.manifest


def evaluated(workdir, rho, version=2, **scores):
    """The folders of a segmenter and its evaluation, finished with these scores."""
    segmenter = open_stage_folder(workdir, "segmenter", 1, {"rho": rho, "seed": 1}, {})
    segmenter.finish()
    inputs = {"segmenter": segmenter.fingerprint}
    evaluation = open_stage_folder(workdir, "evaluation", version, {"gated": False}, inputs)
    write_json(evaluation.path / "metrics.json", {"mean": {"run": scores}})
    evaluation.finish()
    return SimpleNamespace(
        segmenter=segmenter, evaluation=evaluation, config=SimpleNamespace(workdir=workdir)
    )


def test_folders_of_other_versions_and_tools_are_passed_over_with_a_sentence(tmp_path, capsys):
    run = evaluated(tmp_path, 0.5, iou=0.4, lower=0.3, upper=0.5)
    other = evaluated(tmp_path, 1.0, iou=0.2, lower=0.1, upper=0.3)
    assert [row["rho"] for row in siblings(run)] == [0.5, 1.0]
    assert capsys.readouterr().err == ""
    old = evaluated(tmp_path, 0.0, version=1, iou=0.1, lower=0.0, upper=0.2).evaluation.path
    fewer = evaluated(tmp_path, 0.25, iou=0.1).evaluation.path
    foreign = []
    for number, text in enumerate(('{"manifest_version": 3}', "[1]", "no JSON", '{"stage": 1}')):
        foreign.append(tmp_path / f"evaluation-{number}")
        foreign[-1].mkdir()
        (foreign[-1] / "manifest.json").write_text(text)
    assert [row["rho"] for row in siblings(run)] == [0.5, 1.0]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 6
    for folder in (old, fewer, *foreign):
        (line,) = [line for line in said if line.startswith(f"{folder}: ")]
        assert line.endswith("of another version or another tool; it is passed over.")
    for folder in (other.evaluation.path, old, fewer):
        (folder / "manifest.json").unlink()
    assert find_trained(tmp_path, "segmenter").folder == run.segmenter.path
