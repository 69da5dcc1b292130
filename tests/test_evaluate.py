"""The command against CheXlocalize's own tables, against two images worked by hand, and on bad input."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chexseg_jax.evaluation.chexlocalize import Segmentations, write_thresholds
from chexseg_jax.evaluation.human_benchmark import decrease, gap
from chexseg_jax.evaluation.metrics import (
    Counts,
    bootstrap_indices,
    bootstrap_means,
    bootstrap_pooled,
    nan_mean,
    resample,
)
from chexseg_jax.images import letterbox_masks
from chexseg_jax.masks import area, contains, decode_rle, encode_rle, pack, runs_of, shared_area
from chexseg_jax.pathologies import PATHOLOGIES
from experiments.evaluate import main

GOLDENS = Path(__file__).parent / "goldens" / "parity" / "evaluation"
EDEMA, HEART = "Edema", "Cardiomegaly"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def cell(path: Path, name: str) -> dict[str, str]:
    return next(row for row in rows(path) if name in row.values())


def drawing(height: int = 4, width: int = 4, **boxes: tuple[slice, slice]) -> dict[str, dict]:
    """One image's run lengths: a rectangle for the pathologies named, nothing for the rest."""
    masks = {name: np.zeros((height, width), bool) for name in PATHOLOGIES}
    for name, box in boxes.items():
        masks[name.replace("_", " ")][box] = True
    return {name: encode_rle(mask) for name, mask in masks.items()}


def box(top: int, bottom: int, left: int, right: int) -> tuple[slice, slice]:
    return slice(top, bottom), slice(left, right)


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Two images of the truth; a model that draws a third; a reader; a baseline."""
    full, half, quarter = box(0, 4, 0, 4), box(0, 2, 0, 4), box(0, 2, 0, 2)
    truth = {"a": drawing(Edema=half), "b": drawing(Edema=full)}
    pred = {
        "a": drawing(Edema=quarter),
        "b": drawing(Edema=half, Cardiomegaly=quarter),
        "c": drawing(Edema=quarter),
    }
    human = {"a": drawing(Edema=half), "b": drawing(Edema=half)}
    baseline = {"a": drawing(), "b": drawing(Edema=quarter)}
    contents = {"gt": truth, "pred": pred, "human": human, "baseline": baseline}
    return {name: write(tmp_path / f"{name}.json", some) for name, some in contents.items()}


def run(files: dict[str, str], out: Path, *flags: str) -> None:
    main(["--gt", files["gt"], "--pred", files["pred"], "--out", str(out), *flags])


@pytest.mark.parametrize("only", [True, False])
def test_cheXlocalizes_own_tables_byte_for_byte(tmp_path, only):
    files = {name: str(GOLDENS / f"{name}_segmentations.json") for name in ("gt", "pred")}
    run(files, tmp_path, "--true-pos-only" if only else "--no-true-pos-only")
    for name in ("iou_results_per_cxr.csv", "iou_summary_results.csv"):
        expected = GOLDENS / f"true_pos_only_{only}" / name
        assert (tmp_path / name).read_bytes() == expected.read_bytes()
    bootstrap = rows(tmp_path / "iou_bootstrap_results_per_cxr.csv")
    assert len(bootstrap) == 1000 and tuple(bootstrap[0]) == PATHOLOGIES


def test_two_images_by_hand(files, tmp_path, capsys):
    run(files, tmp_path / "out")
    values = rows(tmp_path / "out" / "iou_results_per_cxr.csv")
    assert [(row["img_id"], row[EDEMA], row[HEART]) for row in values] == [
        ("a", "0.5", ""),
        ("b", "0.5", ""),
    ]
    summary = cell(tmp_path / "out" / "iou_summary_results.csv", EDEMA)
    assert summary == {"name": EDEMA, "lower": "0.5", "mean": "0.5", "upper": "0.5"}
    bootstrap = rows(tmp_path / "out" / "iou_bootstrap_results_per_cxr.csv")
    assert {(row[EDEMA], row[HEART]) for row in bootstrap} == {("0.5", "")}
    printed = capsys.readouterr().out
    assert "0.500 [0.500, 0.500] n=2" in printed and "– [–, –] n=0" in printed
    # Pixels of a and b: 4 + 8 are right, none is wrong, 8 + 16 are true; 8 of 32 are blank. No pixel
    # of a heart is true, and 4 of 32 are drawn.
    rates = cell(tmp_path / "out" / "precision_recall_specificity.csv", EDEMA)
    assert list(rates.values()) == [EDEMA, "1.0", "0.5", "1.0"]
    rates = cell(tmp_path / "out" / "precision_recall_specificity.csv", HEART)
    assert list(rates.values()) == [HEART, "0.0", "", "0.875"]


def test_without_true_pos_only_false_alarms_count(files, tmp_path):
    run(files, tmp_path / "out", "--no-true-pos-only")
    values = rows(tmp_path / "out" / "iou_results_per_cxr.csv")
    assert [(row["img_id"], row[EDEMA], row[HEART]) for row in values] == [
        ("a", "0.5", ""),
        ("b", "0.5", "0.0"),
        ("c", "0.0", ""),
    ]


def test_a_reader_by_hand(files, tmp_path):
    out = tmp_path / "out"
    run(files, out, "--human", files["human"], "--baseline", files["baseline"], "--letterbox", "4")
    values = [row[EDEMA] for row in rows(out / "human_iou_results_per_cxr.csv")]
    assert values == ["1.0", "0.5"]
    chosen = np.array([1.0, 0.5])[bootstrap_indices(2)].mean(1)
    found = [row[EDEMA] for row in rows(out / "human_iou_bootstrap_results_per_cxr.csv")]
    assert found == [repr(value) for value in chosen.tolist()]
    # Model .5 always; reader .5, .75 or 1: decreases 0 to 50 %.
    row = cell(out / "percentage_decrease.csv", EDEMA)
    mean = chosen.mean()
    assert float(row["hb"]) == pytest.approx(mean, abs=1e-12)
    assert float(row["pct_diff"]) == pytest.approx(100 * (mean - 0.5) / mean, abs=1e-3)
    assert (row["pct_diff_lower"], row["pct_diff_upper"]) == ("0.0", "50.0")
    assert [r["name"] for r in rows(out / "percentage_decrease.csv")][::10] == [EDEMA, "Average"]
    # Pooled, three images: model 12 / 28, baseline 4 / 24, reader 16 / 24.
    pooled = {
        row["source"]: float(row["iou"])
        for row in rows(out / "pooled_iou.csv")
        if row["name"] == "Mean"
    }
    ious = {"pred": 12 / 28, "human": 16 / 24, "baseline": 4 / 24}
    assert pooled == pytest.approx(ious)
    share = (ious["pred"] - ious["baseline"]) / (ious["human"] - ious["baseline"])
    assert float(rows(out / "gap.csv")[0]["share"]) == pytest.approx(share)
    assert [r["recall/sensitivity"] for r in rows(out / "human_precision_recall_specificity.csv")][
        4
    ] == repr(16 / 24)


def test_points_by_hand(files, tmp_path):
    # Points are (x, y): of image a the upper half is true, of b everything.
    points = {"a": {EDEMA: [[3.9, 1.9]]}, "b": {HEART: [[0, 0]]}}
    reader = {"a": {EDEMA: [[0, 3], [1, 0]]}, "b": {EDEMA: [[0, 2]]}, "z": {EDEMA: [[0, 0]]}}
    files["pred"] = write(tmp_path / "points.json", points)
    reader_file = write(tmp_path / "reader.json", reader)
    out = tmp_path / "out"
    run(files, out, "--metric", "hitmiss", "--human", reader_file)
    values = [(row[EDEMA], row[HEART]) for row in rows(out / "hitmiss_results_per_cxr.csv")]
    assert values == [("1", ""), ("0", "")]
    assert {row[EDEMA] for row in rows(out / "human_hitmiss_results_per_cxr.csv")} == {"1"}
    bootstrap = [float(row[EDEMA]) for row in rows(out / "hitmiss_bootstrap_results_per_cxr.csv")]
    assert bootstrap == np.array([1.0, 0.0])[bootstrap_indices(2)].mean(1).tolist()
    summary = cell(out / "hitmiss_summary_results.csv", EDEMA)
    assert (summary["lower"], summary["upper"]) == ("0.0", "1.0")
    decreased = float(cell(out / "percentage_decrease.csv", EDEMA)["pct_diff"])
    assert decreased == pytest.approx(100 * (1 - np.mean(bootstrap)), abs=1e-3)


def test_one_column_of_hits_with_a_blank_has_decimals(files, tmp_path):
    files["gt"] = write(tmp_path / "gt.json", {"a": drawing(Edema=box(0, 1, 0, 1)), "b": drawing()})
    files["pred"] = write(tmp_path / "points.json", {"a": {EDEMA: [[0, 0]]}})
    run(files, tmp_path / "out", "--metric", "hitmiss")
    values = [row[EDEMA] for row in rows(tmp_path / "out" / "hitmiss_results_per_cxr.csv")]
    assert values == ["1.0", ""]


masks = st.integers(1, 9).flatmap(
    lambda width: st.lists(
        st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=9
    )
)


@settings(deadline=None)
@given(masks, st.randoms(use_true_random=False))
def test_areas_of_runs_are_those_of_decoded_masks(cells, random):
    first = np.array(cells)
    second = np.array([[random.random() < 0.5 for _ in row] for row in cells])
    a, b = (runs_of(encode_rle(mask)) for mask in (first, second))
    assert area(a) == first.sum()
    assert shared_area(a, b) == shared_area(b, a) == (first & second).sum()
    height = first.shape[0]
    found = [[contains(a, height, y, x) for x in range(first.shape[1])] for y in range(height)]
    np.testing.assert_array_equal(found, first)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
)
def test_areas_hold_for_runs_of_no_length(first, second):
    total = max(sum(first), sum(second)) + 1
    runs = [np.array([*some, total - sum(some)], np.int64) for some in (first, second)]
    a, b = (np.repeat(np.arange(len(some)) % 2 == 1, some) for some in runs)
    assert shared_area(*runs) == (a & b).sum()


def test_framed_as_the_library_frames(tmp_path):
    generator = np.random.default_rng(0)
    drawn = generator.random((37, 53, len(PATHOLOGIES))) < 0.5
    drawn[..., 3] = False
    rles = {name: encode_rle(drawn[..., k]) for k, name in enumerate(PATHOLOGIES)}
    source = Segmentations.read(Path(write(tmp_path / "some.json", {"a": rles})))
    np.testing.assert_array_equal(
        source.letterboxed("a", 32), letterbox_masks(pack(drawn), 32) != 0
    )
    assert not source.letterboxed("b", 32).any()


def test_bootstrap_means_are_those_of_the_images_drawn():
    values = np.random.default_rng(0).random((7, 3))
    values[values < 0.3] = np.nan
    values[:, 2] = np.nan
    found = bootstrap_means(values, replicates=20, seed=3)
    expected = [nan_mean(values[images]) for images in bootstrap_indices(7, replicates=20, seed=3)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def counts(intersection: list[int], predicted: list[int], targets: list[int]) -> Counts:
    """Counts of one pathology drawn nowhere but in the first column."""
    columns = [
        np.pad(np.array(some)[:, None], ((0, 0), (0, 9)))
        for some in (intersection, predicted, targets)
    ]
    return Counts(columns[0][:, None], columns[1][:, None], columns[2])


def test_bootstrap_pooled_sums_before_it_divides():
    some = counts([1, 2, 0], [2, 5, 0], [3, 2, 4])
    found = bootstrap_pooled(some, resample(["a", "b", "c"], replicates=10))[:, 0]
    for value, images in zip(found, bootstrap_indices(3, replicates=10), strict=True):
        pooled = some[images].pooled()
        union = pooled.predicted_area[0, 0] + pooled.target_area[0] - pooled.intersection[0, 0]
        assert value == pooled.intersection[0, 0] / union
    assert np.isnan(bootstrap_pooled(some, np.ones((2, 3), int))[:, 1:]).all()


def test_gap_has_no_share_where_the_reader_is_behind():
    good, bad = counts([4, 4], [4, 4], [4, 4]), counts([1, 1], [4, 4], [4, 4])
    found = gap(good, good, bad, ["a", "b"], seed=0)
    assert np.isnan(found.share) and found.human < found.baseline == 1.0
    assert gap(good, bad, good, ["a", "b"], seed=0).share == 1.0


def test_decrease_from_nothing_is_infinite():
    human, pred = np.array([0.5, 0.0, 0.0]), np.array([0.25, 0.25, 0.0])
    np.testing.assert_array_equal(decrease(human, pred), [0.5, -np.inf, np.nan])


def test_thresholds_are_sorted_by_task(tmp_path):
    write_thresholds(tmp_path / "thresholds.csv", np.arange(10) / 10)
    lines = (tmp_path / "thresholds.csv").read_text().splitlines()
    assert lines[:3] == ["threshold,task", "0.3,Airspace Opacity", "0.6,Atelectasis"]
    assert len(lines) == 11


def broken(tmp_path: Path, files: dict[str, str], case: str) -> tuple[dict[str, str], list[str]]:
    """Files and flags with one thing wrong."""
    pred = json.loads(Path(files["pred"]).read_text())
    flags: list[str] = []
    match case:
        case "missing image":
            del pred["b"]
        case "missing pathology":
            del pred["b"][EDEMA]
        case "unknown pathology":
            pred["b"]["Scoliosis"] = pred["b"][EDEMA]
        case "two names":
            pred["b"]["Lung Opacity"] = pred["b"]["Airspace Opacity"]
        case "size":
            pred["b"] = drawing(8, 4)
        case "size of one":
            pred["b"][EDEMA] = encode_rle(np.ones((2, 4), bool))
        case "runs":
            pred["b"][EDEMA]["counts"] = "~~"
        case "no size":
            pred["b"][EDEMA] = "mask"
        case "no image":
            pred["b"] = []
        case "point outside":
            pred, flags = {"b": {EDEMA: [[4, 0]]}}, ["--metric", "hitmiss"]
        case "no point":
            pred, flags = {"b": {EDEMA: [["0", 0]]}}, ["--metric", "hitmiss"]
        case "no points":
            pred, flags = {"b": {EDEMA: 3}}, ["--metric", "hitmiss"]
    return files | {"pred": write(tmp_path / "bad.json", pred)}, flags


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("missing image", "is missing, one of 1 images"),
        ("missing pathology", "Edema is missing"),
        ("unknown pathology", "unknown pathology 'Scoliosis'"),
        ("two names", "under two names"),
        ("size", "8 x 4 pixels"),
        ("size of one", "Edema: 2 x 4 pixels"),
        ("runs", "Edema: run lengths"),
        ("no size", "Edema: a mask's size"),
        ("no image", "must be an object of pathologies"),
        ("point outside", "Edema: the point [4, 0] lies outside"),
        ("no point", "Edema: a point must be [x, y]"),
        ("no points", "Edema: must be a list of points"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, files, capsys, case, said):
    files, flags = broken(tmp_path, files, case)
    with pytest.raises(SystemExit) as stop:
        run(files, tmp_path / "out", *flags)
    message = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert "bad.json: b" in message and said in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--baseline", "x.json"], "add --human"),
        (["--letterbox", "0"], "--letterbox must be"),
        (["--metric", "hitmiss", "--letterbox", "320"], "leave out --metric hitmiss"),
        (["--seed", "-1"], "--seed must lie"),
        (["--human", "absent.json"], "absent.json: No such file"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, files, capsys, flags, said):
    with pytest.raises(SystemExit) as stop:
        run(files, tmp_path / "out", *flags)
    assert stop.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_json_or_no_folder(tmp_path, files, capsys):
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(SystemExit):
        run(files | {"pred": str(tmp_path / "text.json")}, tmp_path / "out")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(SystemExit):
        run(files | {"pred": str(tmp_path / "deep.json")}, tmp_path / "out")
    with pytest.raises(SystemExit):
        run(files | {"pred": write(tmp_path / "empty.json", {})}, tmp_path / "out")
    with pytest.raises(SystemExit):
        run(files, Path(files["gt"]))
    said = capsys.readouterr().err
    assert "text.json: not JSON" in said and "deep.json: not JSON" in said
    assert "hold at least one" in said and "is a file" in said


def test_points_of_other_images_are_no_misses(tmp_path, files, capsys):
    files["pred"] = write(tmp_path / "points.json", {"z": {EDEMA: [[0, 0]]}})
    with pytest.raises(SystemExit) as stop:
        run(files, tmp_path / "out", "--metric", "hitmiss")
    assert stop.value.code == 2 and "points.json: z: neither" in capsys.readouterr().err


def test_a_missing_image_is_empty_when_asked_for(tmp_path, files):
    files, _ = broken(tmp_path, files, "missing image")
    run(files, tmp_path / "out", "--allow-missing", "--no-true-pos-only")
    values = [row[EDEMA] for row in rows(tmp_path / "out" / "iou_results_per_cxr.csv")]
    assert values == ["0.5", "0.0", "0.0"]


def test_decoding_and_runs_agree_on_what_is_wrong():
    for rle in ({"size": [2, 2], "counts": "5"}, {"size": [2, 2]}, {"size": [2, 2], "counts": ""}):
        with pytest.raises(ValueError) as by_runs:
            runs_of(rle)
        with pytest.raises(ValueError) as by_mask:
            decode_rle(rle)
        assert str(by_runs.value) == str(by_mask.value)
