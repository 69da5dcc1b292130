"""The parity command passes on the goldens of the tests, and reports every deviation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.parity import main
from experiments.parity_checks.fixtures import Fixtures, compare_values

GOLDENS = Path(__file__).parent / "goldens" / "parity"
LIGHT = ("path_index.json", "heatmap_to_segmentation.npz", "evaluation")


def run(folder, capsys, *more):
    status = main(["--fixtures", str(folder), *more])
    return status, capsys.readouterr().out


@pytest.fixture
def light(tmp_path):
    """The fixtures that need no network."""
    folder = tmp_path / "fixtures"
    folder.mkdir()
    for name in LIGHT:
        copy = shutil.copytree if (GOLDENS / name).is_dir() else shutil.copy
        copy(GOLDENS / name, folder / name)
    (folder / "index.json").write_text(json.dumps({"seed": 0, "state_dicts": {}}))
    return folder


def rewrite(path, **changes):
    """Rewrite a file of arrays with changes; None removes an array."""
    with np.load(path) as content:
        arrays = {**content, **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def failures(out):
    return [line.split()[1:3] for line in out.splitlines() if line.startswith("FAIL")]


def test_all_goldens_are_equal(capsys):
    status, out = run(GOLDENS, capsys)
    assert status == 0, out
    ok = [line for line in out.splitlines() if line.startswith("ok")]
    named = " ".join(ok)
    for path in GOLDENS.glob("*.npz"):
        assert f"{path.name}: " in named
    gradients = [line for line in ok if "densenet121.npz: gradnorm/" in line]
    assert len(gradients) == 364
    assert "0 failed" in out
    assert "Not in this folder: deeplabv3plus_*.npz, irnet_infer.npz." in out


def test_unchanged_fixtures_pass(light, capsys):
    status, out = run(light, capsys)
    assert status == 0, out


def test_a_changed_number_fails(light, capsys):
    walked = np.load(GOLDENS / "random_walk.npz")["0/walked"].copy()
    walked[0, 3, 4] += 1e-4 * np.abs(walked).max()
    shutil.copy(GOLDENS / "random_walk.npz", light)
    rewrite(light / "random_walk.npz", **{"0/walked": walked})
    status, out = run(light, capsys, "--only", "random_walk.npz")
    assert status == 1
    assert failures(out)[0] == ["random_walk.npz:", "0/walked"]


def test_nan_fails(light, capsys):
    path = light / "heatmap_to_segmentation.npz"
    values = np.load(path)["otsu_value"].copy()
    values[2] = np.nan
    rewrite(path, otsu_value=values)
    status, out = run(light, capsys)
    assert status == 1
    assert failures(out)[0] == ["heatmap_to_segmentation.npz:", "otsu_value"]


@pytest.mark.parametrize("name", ["otsu", "heatmaps"])
def test_a_missing_array_fails_and_the_others_go_on(light, capsys, name):
    rewrite(light / "heatmap_to_segmentation.npz", **{name: None})
    status, out = run(light, capsys)
    assert status == 1
    assert f"the array {name} is missing" in out
    assert "evaluation: true_pos_only_True/img_id" in out


def test_an_array_that_nothing_compares_fails(light, capsys):
    rewrite(light / "heatmap_to_segmentation.npz", surprise=np.zeros(3))
    status, out = run(light, capsys)
    assert status == 1
    assert failures(out)[0] == ["heatmap_to_segmentation.npz:", "surprise"]


@pytest.mark.parametrize("name", ["notes.txt", "vgg16.npz", "evaluation/more.csv", "more/a.npz"])
def test_a_file_that_nothing_compares_fails(light, capsys, name):
    (light / name).parent.mkdir(exist_ok=True)
    (light / name).write_text("")
    status, out = run(light, capsys)
    assert status == 1
    assert f"{name.rpartition('/')[2] if 'evaluation' in name else name.split('/')[0]} " in out


def test_a_network_that_no_file_compares_fails(light, capsys):
    index = {"seed": 0, "state_dicts": {"irnet": {"fc_edge6.bias": [1]}}}
    (light / "index.json").write_text(json.dumps(index))
    status, out = run(light, capsys)
    assert status == 1
    assert failures(out)[0] == ["index.json:", "irnet"]


def test_a_cell_of_a_table_fails(light, capsys):
    path = light / "evaluation" / "true_pos_only_True" / "iou_summary_results.csv"
    path.write_text(path.read_text().replace("0.319", "0.318"))
    status, out = run(light, capsys)
    assert status == 1
    name = "true_pos_only_True/iou_summary_results.csv"
    assert failures(out)[0] == ["evaluation:", name]


def test_a_truncated_file_fails(light, capsys):
    path = light / "heatmap_to_segmentation.npz"
    path.write_bytes(path.read_bytes()[:2000])
    status, out = run(light, capsys)
    assert status == 1
    assert "heatmap_to_segmentation.npz: BadZipFile" in out


def test_a_missing_index_is_an_error_message(tmp_path, capsys):
    assert main(["--fixtures", str(tmp_path)]) == 1
    assert "index.json: no index of fixtures" in capsys.readouterr().err


def test_weights_depend_on_seed_and_name(light):
    shapes = {
        "a.weight": [2, 3, 1, 1],
        "a.bias": [4],
        "a.running_var": [5],
        "b": {"same_as": "a.bias"},
    }
    index = {"seed": 7, "state_dicts": {"net": shapes}}
    (light / "index.json").write_text(json.dumps(index))
    fixtures = Fixtures(light)
    state = fixtures.state_dict("net")
    # 0x6f58597e is the CRC-32 of "a.bias".
    normal = np.random.default_rng([7, 0x6F58597E]).standard_normal(4).astype(np.float32)
    np.testing.assert_array_equal(state["a.bias"], np.float32(0.1) * normal)
    assert state["b"] is state["a.bias"]
    assert fixtures.aliases("net") == {"b"}
    assert state["a.running_var"].min() >= 1
    assert {value.dtype for value in state.values()} == {np.dtype(np.float32)}


def test_errors_are_relative_to_the_largest_magnitude():
    assert compare_values("x", [1.0, 100.0], [2.0, 100.0], 0.1).error == 0.01
    assert compare_values("x", [1.0, 0.0], [0.0, 0.0], 0.1).error == 1.0
    assert not compare_values("x", [1.0], [1.0, 1.0], 0.1).ok
    assert not compare_values("x", [np.nan], [np.nan], 0.1).ok
