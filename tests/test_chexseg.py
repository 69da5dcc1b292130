import csv
import json
from pathlib import Path

import numpy as np
import pytest

from chexseg_jax.images import letterbox, unletterbox
from chexseg_jax.inference.export import load, load_segmenter
from chexseg_jax.masks import pack, pack_rles
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.runtime.stage_folder import Records
from chexseg_jax.stages.classifier import load_classifier
from chexseg_jax.weights.convert import to_torch
from chexseg_jax.weights.safetensors import save_safetensors
from experiments.chexseg import main
from experiments.export import main as export
from experiments.run.config import PRESETS, read_arguments
from experiments.run.data import open_data
from experiments.run.pipeline import Run

TINY = [
    "--phantoms.train=72",
    "--phantoms.valid=48",
    "--phantoms.test=24",
    "--phantoms.short-side=64",
    "--image-size=64",
    "--classify.network.blocks",
    *"2222",
    "--classify.batch-size=16",
    "--classify.epochs=16",
    "--classify.every=36",
    "--localize.batch-size=16",
    "--relate.radius=3",
    "--relate.every=2",
    "--segment.width=16",
    "--segment.learning-rate=0.005",
    "--segment.epochs=12",
    "--segment.every=30",
]


def arguments(workdir: Path, *flags: str) -> list[str]:
    return [f"--workdir={workdir}", *TINY, *flags]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Where one whole run has been."""
    folder = tmp_path_factory.mktemp("runs")
    main(arguments(folder, "--rho=0.9"))
    return folder


def stage(workdir: Path, name: str) -> Path:
    (folder,) = workdir.glob(f"{name}-*")
    return folder


def report(workdir: Path) -> dict:
    return json.loads((stage(workdir, "evaluate") / "report.json").read_text())


def test_every_stage_is_finished(workdir):
    names = {p.parent.name.rpartition("-")[0] for p in workdir.glob("*/manifest.json")}
    assert names == {
        *("classify", "localize", "seed", "relate", "segment", "evaluate"),
        *("label-cam", "label-irnet"),
    }
    assert not list(workdir.rglob("*.part"))


def test_both_trainings_learn(workdir):
    for name in ("classify", "segment"):
        rows = map(json.loads, (stage(workdir, name) / "metrics.jsonl").read_text().splitlines())
        losses = [row["loss"] for row in rows if "loss" in row]
        assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5]), name


def test_the_report_says_all_it_should(workdir):
    found = report(workdir)
    assert found["rho"] == 0.9 and found["phantom"] is True
    assert set(found["pooled"]) == {"run", "cam", "prior", "human"}
    assert found["mean"]["human"]["iou"] > 0.4 > found["mean"]["cam"]["iou"]
    assert 0 < found["mean"]["run"]["lower"] <= found["mean"]["run"]["iou"]
    assert set(found["pseudo_masks"]["means"]) == {"cam", "irnet", "prior", "prior_labels"}
    assert found["data"]["test"]["images"] == 24
    assert [row["name"] for row in found["stages"]][:2] == ["classify", "localize"]
    page = (stage(workdir, "evaluate") / "report.html").read_text()
    assert all(name in page for name in PATHOLOGIES)
    for name in ("training.png", "iou.png"):
        assert (stage(workdir, "evaluate") / name).read_bytes().startswith(b"\x89PNG")


def test_predictions_are_what_the_tables_count(workdir):
    folder = stage(workdir, "evaluate")
    predictions = json.loads((folder / "pred_segmentations.json").read_text())
    assert len(predictions) == 24
    data = open_data(read_arguments("", arguments(workdir)))
    truths = {e["image_id"]: e for e in (data.test[i] for i in range(24))}
    with (folder / "true_pos_only_False" / "iou_results_per_cxr.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["img_id"] for row in rows} == set(predictions) == set(truths)
    for row in rows:
        truth, drawn = truths[row["img_id"]]["masks"], pack_rles(predictions[row["img_id"]])
        assert drawn.shape == truth.shape
        for k, name in enumerate(PATHOLOGIES):
            one, other = truth >> k & 1, drawn >> k & 1
            if (one | other).any():
                assert float(row[name]) == pytest.approx((one & other).sum() / (one | other).sum())
            else:
                assert row[name] == ""


def test_pseudo_masks_obey_the_labels(workdir):
    run = Run(
        read_arguments("", arguments(workdir)), open_data(read_arguments("", arguments(workdir)))
    )
    records = Records(run.localize, "cams")
    lines = [
        json.loads(line)
        for path in sorted(run.label.path.glob("masks-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert len(lines) == len(records) == 72
    drawn = 0
    for index, line in enumerate(lines):
        example = run.data.train[index]
        assert line["image_id"] == example["image_id"] == str(records[index]["image_id"])
        heart = example["labels"][2] == 1
        for name in line["rle"]:
            column = {"Enlarged Cardiomediastinum": 1, "Support Devices": 13}.get(name)
            if column is not None:
                positive = example["labels"][column] == 1
                assert positive or (heart and column == 1)
                drawn += 1
    assert drawn > 10


def test_an_export_predicts_what_the_run_predicted(workdir, tmp_path):
    run = Run(
        read_arguments("", arguments(workdir)), open_data(read_arguments("", arguments(workdir)))
    )
    export([f"--run={workdir}", f"--out={tmp_path / 'segmenter'}"])
    segmenter = load_segmenter(tmp_path / "segmenter")
    (stored,) = workdir.glob("evaluate-*/pred_segmentations.json")
    predictions = json.loads(stored.read_text())
    for example in (run.data.test[i] for i in range(3)):
        height, width = example["image"].shape[:2]
        maps = segmenter(letterbox(example["image"], segmenter.image_size)[None])[0]
        drawn = pack(unletterbox(maps, height, width) > segmenter.thresholds)
        assert (drawn != pack_rles(predictions[example["image_id"]])).mean() < 0.001
    card = (tmp_path / "segmenter" / "README.md").read_text()
    assert "Not a medical device" in card and "| train | 72 |" in card
    assert all(name in card for name in PATHOLOGIES)
    for kind, stage_name in (("classifier", "classify"), ("irnet", "relate")):
        export(
            [f"--run={stage(workdir, stage_name)}", f"--out={tmp_path / kind}", f"--what={kind}"]
        )
        assert load(tmp_path / kind, kind).image_size == 64
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--run=stage:classify"], "give the folder of its evaluation"),
        (["--run=nowhere"], "no finished evaluate stage"),
        (["--run=workdir", "--out=full"], "not an empty folder"),
    ],
)
def test_an_export_that_cannot_be_is_one_sentence(workdir, tmp_path, capsys, flags, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    places = {"stage:classify": stage(workdir, "classify"), "workdir": workdir}
    places |= {"nowhere": tmp_path, "full": tmp_path / "full"}
    given = {"--out": tmp_path / "out"} | {
        flag.partition("=")[0]: places[flag.partition("=")[2]] for flag in flags
    }
    with pytest.raises(SystemExit) as ended:
        export([f"{name}={path}" for name, path in given.items()])
    assert ended.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_again_it_skips_and_rho_touches_the_last_two_stages(workdir):
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/manifest.json")}
    main(arguments(workdir, "--rho=0.9"))
    assert {path: path.stat().st_mtime_ns for path in before} == {**before}
    main(arguments(workdir, "--rho=1", "--until=segment", "--segment.epochs=0.5"))
    new = {path.parent.name for path in workdir.glob("*/manifest.json")} - {
        path.parent.name for path in before
    }
    assert {name.rpartition("-")[0] for name in new} == {"segment"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--rho=1.5"], "rho must lie in"), (["--image-size=100"], "multiple of 32")],
)
def test_settings_that_make_no_sense_are_refused(flags, said, capsys):
    with pytest.raises((SystemExit, ValueError)) as caught:
        read_arguments("", flags)
    assert said in capsys.readouterr().err + str(caught.value)


def test_presets_and_flags():
    assert read_arguments("", []).preset == "phantom"
    assert read_arguments("", ["--data-dir=x"]).preset == "chexpert"
    paper = read_arguments("", ["--preset", "paper", "--seed", "3"])
    assert paper.seed == 3 and paper.classify == PRESETS["paper"].classify
    assert (paper.relate.learning_rate, paper.seeds.disease) == (0.1, 0.3)


def test_a_classifier_starts_from_a_file(workdir, tmp_path):
    settings = read_arguments("", arguments(workdir))
    trained = load_classifier(settings.classify, stage(workdir, "classify"))
    save_safetensors(tmp_path / "trained.safetensors", to_torch(trained))
    flags = [f"--classify.init={tmp_path / 'trained.safetensors'}", "--classify.init-head"]
    flags += ["--classify.epochs=0.25", "--until=classify"]
    main(arguments(tmp_path, *flags, f"--data-dir={workdir / 'phantoms'}", "--preset=phantom"))
    scores = [
        json.loads((stage(folder, "classify") / "manifest.json").read_text())["score"]
        for folder in (workdir, tmp_path)
    ]
    assert scores[1] > scores[0] - 0.1  # a step or two from where it stopped, not from nothing
    with pytest.raises(SystemExit, match=r"--classify\.pixels=imagenet"):
        main(arguments(workdir, *flags, "--classify.pixels=xrv"))
