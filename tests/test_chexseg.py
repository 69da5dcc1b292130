import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chexseg_jax.evaluation.metrics import patient_of
from chexseg_jax.images import letterbox, unletterbox
from chexseg_jax.inference.export import load, load_segmenter
from chexseg_jax.masks import pack, pack_rles
from chexseg_jax.pathologies import OBSERVATION_OF_PATHOLOGY, PATHOLOGIES
from chexseg_jax.pseudolabels.storage import PseudoMaskSource
from chexseg_jax.runtime.stage_folder import RecordReader
from chexseg_jax.stages import segmenter as segmenter_stage
from chexseg_jax.training.checkpoints import restore
from chexseg_jax.weights.convert import to_torch
from chexseg_jax.weights.safetensors import write_safetensors
from experiments.chexseg import main
from experiments.export import main as export
from experiments.robustness import EXPOSURES
from experiments.robustness import main as robustness
from experiments.run.config import PRESETS, read_arguments
from experiments.run.data import open_data
from experiments.run.pipeline import made, run_pipeline

TINY = [
    "--phantoms.train=72",
    "--pseudo=irnet",
    "--rho=0.9",
    "--phantoms.valid=48",
    "--phantoms.test=24",
    "--phantoms.short-side=64",
    "--image-size=64",
    "--classifier.network.blocks",
    *"2222",
    "--classifier.batch-size=16",
    "--classifier.epochs=16",
    "--classifier.every=36",
    "--cams.batch-size=16",
    "--irnet.radius=3",
    "--irnet.every=2",
    "--segmenter.width=16",
    "--segmenter.learning-rate=0.005",
    "--segmenter.epochs=12",
    "--segmenter.every=30",
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
    return json.loads((stage(workdir, "evaluation") / "report.json").read_text())


def test_every_stage_is_finished(workdir):
    names = {p.parent.name.rpartition("-")[0] for p in workdir.glob("*/manifest.json")}
    assert names == {
        *("classifier", "cams", "seeds", "irnet", "segmenter", "evaluation"),
        *("pseudo_masks-cam", "pseudo_masks-irnet"),
    }
    assert not list(workdir.rglob("*.part"))


def test_both_trainings_learn(workdir):
    for name in ("classifier", "segmenter"):
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
    assert [row["name"] for row in found["stages"]][:2] == ["classifier", "cams"]
    page = (stage(workdir, "evaluation") / "report.html").read_text()
    assert all(name in page for name in PATHOLOGIES)
    for name in ("training.png", "iou.png"):
        assert (stage(workdir, "evaluation") / name).read_bytes().startswith(b"\x89PNG")


def test_predictions_are_what_the_tables_count(workdir):
    folder = stage(workdir, "evaluation")
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
    config = read_arguments("", arguments(workdir))
    run = run_pipeline(config, open_data(config))
    records = RecordReader(run.cams, "cams")
    masks = PseudoMaskSource(run.pseudo_masks)
    assert len(masks) == len(records) == 72
    drawn = 0
    for index in range(len(masks)):
        example = run.data.train[index]
        assert masks[index].image_id == example["image_id"] == str(records[index]["image_id"])
        heart = example["labels"][2] == 1
        for name in masks[index].planes:
            column = {"Enlarged Cardiomediastinum": 1, "Support Devices": 13}.get(name)
            if column is not None:
                positive = example["labels"][column] == 1
                assert positive or (heart and column == 1)
                drawn += 1
    assert drawn > 0


def test_an_export_predicts_what_the_run_predicted(workdir, tmp_path):
    config = read_arguments("", arguments(workdir))
    run = run_pipeline(config, open_data(config))
    export([f"--run={workdir}", f"--out={tmp_path / 'segmenter'}"])
    segmenter = load_segmenter(tmp_path / "segmenter")
    (stored,) = workdir.glob("evaluation-*/pred_segmentations.json")
    predictions = json.loads(stored.read_text())
    for example in (run.data.test[i] for i in range(3)):
        height, width = example["image"].shape[:2]
        maps = segmenter(letterbox(example["image"], segmenter.image_size)[None])[0]
        drawn = pack(unletterbox(maps, height, width) > segmenter.thresholds)
        assert (drawn != pack_rles(predictions[example["image_id"]])).mean() < 0.001
    card = (tmp_path / "segmenter" / "README.md").read_text()
    assert "Not a medical device" in card and "| train | 72 |" in card
    assert all(name in card for name in PATHOLOGIES)
    for kind in ("classifier", "irnet"):
        export([f"--run={stage(workdir, kind)}", f"--out={tmp_path / kind}", f"--what={kind}"])
        assert load(tmp_path / kind, kind).image_size == 64
    assert not list(tmp_path.glob(".*"))


def test_robustness_as_it_is_equals_the_evaluation(workdir, capsys):
    evaluation = stage(workdir, "evaluation")
    robustness([f"--run={evaluation}"])
    with (evaluation / "robustness.csv").open() as file:
        rows = {row["exposure"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(EXPOSURES) and "gamma 0.5" in capsys.readouterr().out
    metrics = json.loads((evaluation / "metrics.json").read_text())
    for name, score in metrics["pooled"]["run"].items():
        found = float(rows["as it is"][f"iou/{name}"] or "nan")
        assert found == pytest.approx(np.nan if score["iou"] is None else score["iou"], nan_ok=True)
    assert 0.5 < float(rows["as it is"]["auroc"]) <= 1
    assert len({row["iou"] for row in rows.values()}) > 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--run=stage:classifier"], "give the folder of its evaluation"),
        (["--run=nowhere"], "no finished evaluation stage"),
        (["--run=workdir", "--out=full"], "not an empty folder"),
    ],
)
def test_an_export_that_cannot_be_is_one_sentence(workdir, tmp_path, capsys, flags, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    places = {"stage:classifier": stage(workdir, "classifier"), "workdir": workdir}
    places |= {"nowhere": tmp_path, "full": tmp_path / "full"}
    given = {"--out": tmp_path / "out"} | {
        flag.partition("=")[0]: places[flag.partition("=")[2]] for flag in flags
    }
    with pytest.raises(SystemExit) as ended:
        export([f"{name}={path}" for name, path in given.items()])
    assert ended.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_photometry_is_in_manifests_and_fingerprints(workdir, tmp_path):
    flags = [f"--data-dir={workdir / 'phantoms'}", "--preset=phantom", "--photometry=median"]
    flags += ["--classifier.epochs=0.25", "--until=classifier"]
    config = read_arguments("", arguments(tmp_path, *flags))
    data = open_data(config)
    run = run_pipeline(config, data)
    assert {source.fingerprint.count("+median") for source in data.sources().values()} == {1}
    assert "+median" in run.classifier.inputs["train"]
    for name, folder in {
        "median": run.classifier.path,
        "as-is": stage(workdir, "segmenter"),
    }.items():
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["network"]["photometry"] == name


def test_again_it_skips_and_rho_touches_the_last_two_stages(workdir):
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/manifest.json")}
    main(arguments(workdir, "--rho=0.9"))
    assert {path: path.stat().st_mtime_ns for path in before} == {**before}
    main(arguments(workdir, "--rho=1", "--until=segmenter", "--segmenter.epochs=0.5"))
    new = {path.parent.name for path in workdir.glob("*/manifest.json")} - {
        path.parent.name for path in before
    }
    assert {name.rpartition("-")[0] for name in new} == {"segmenter"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rho=1.5"], "rho must lie in"),
        (["--image-size=100"], "multiple of 32"),
        (["--experts=0"], "at least 1"),
        (["--seeds.background=0.7"], "below --seeds.foreground"),
    ],
)
def test_settings_that_make_no_sense_are_refused(flags, said, capsys):
    with pytest.raises((SystemExit, ValueError)) as caught:
        read_arguments("", flags)
    shown = capsys.readouterr().err + str(caught.value)
    assert said in " ".join(shown.replace("│", " ").split())  # in a box, over several lines


def test_presets_and_flags():
    assert read_arguments("", []).preset == "phantom"
    assert read_arguments("", ["--data-dir=x"]).preset == "chexpert"
    paper = read_arguments("", ["--preset", "paper", "--seed", "3"])
    assert paper.seed == 3 and paper.classifier == PRESETS["paper"].classifier
    assert (paper.irnet.learning_rate, paper.seeds.foreground) == (0.1, 0.3)


def test_a_classifier_starts_from_a_file(workdir, tmp_path):
    trained = restore(stage(workdir, "classifier"))
    write_safetensors(tmp_path / "trained.safetensors", to_torch(trained))
    flags = [f"--classifier.init={tmp_path / 'trained.safetensors'}", "--classifier.init-head"]
    flags += ["--classifier.epochs=0.25", "--until=classifier"]
    main(arguments(tmp_path, *flags, f"--data-dir={workdir / 'phantoms'}", "--preset=phantom"))
    scores = [
        json.loads((stage(folder, "classifier") / "manifest.json").read_text())["score"]
        for folder in (workdir, tmp_path)
    ]
    assert scores[1] > scores[0] - 0.1  # a step or two from where it stopped, not from nothing
    with pytest.raises(SystemExit, match=r"--classifier\.normalization=imagenet"):
        main(arguments(workdir, *flags, "--classifier.normalization=xrv"))


def stages_of(workdir: Path, *flags: str) -> list[str]:
    """The stages that a run of these flags takes part in, in order."""
    config = read_arguments("", arguments(workdir, *flags))
    return [row["name"] for row in run_pipeline(config, open_data(config)).stages]


def test_a_run_makes_only_what_its_result_needs(workdir):
    assert stages_of(workdir, "--pseudo=cam", "--until=pseudo_masks") == [
        *("classifier", "cams", "pseudo_masks-cam")
    ]
    assert stages_of(workdir, "--until=seeds", "--pseudo=cam") == ["classifier", "cams", "seeds"]
    brief = ["--segmenter.epochs=0.5", "--until=segmenter"]
    assert stages_of(workdir, "--rho=1", *brief) == ["classifier", "segmenter"]
    full = [json.loads(path.read_text()) for path in workdir.glob("segmenter-*/manifest.json")]
    (alone,) = [manifest for manifest in full if manifest["settings"]["rho"] == 1]
    assert "pseudo_masks" not in alone["inputs"] and alone["pseudo"] == 0


def test_a_teacher_is_the_run_of_rho_1_and_labels_the_weak_images(workdir):
    config = read_arguments("", arguments(workdir, "--pseudo=teacher", "--until=pseudo_masks"))
    config = replace(config, segmenter=replace(config.segmenter, epochs=0.5))
    config = replace(config, pseudo_masks=replace(config.pseudo_masks, thresholds="chosen"))
    run = run_pipeline(config, open_data(config))
    alone = run_pipeline(replace(config, rho=1.0, until="segmenter"), open_data(config))
    assert alone.segmenter.path == run.teacher.path
    thresholds = run.pseudo_masks.manifest["thresholds"]
    assert tuple(thresholds) == PATHOLOGIES and all(0 <= t < 1 for t in thresholds.values())
    masks = PseudoMaskSource(run.pseudo_masks)
    drawn = 0
    for index in range(len(masks)):
        labels = run.data.train[index]["labels"][np.array(OBSERVATION_OF_PATHOLOGY)]
        positive = {name for name, label in zip(PATHOLOGIES, labels, strict=True) if label == 1}
        extra = {"Enlarged Cardiomediastinum"} if "Cardiomegaly" in positive else set()
        assert masks[index].planes.keys() <= positive | extra
        drawn += len(positive & masks[index].planes.keys())
    again = replace(config, rounds=2, rho=0.5)
    student = run_pipeline(replace(config, rho=0.5, until="segmenter"), open_data(config))
    assert run_pipeline(again, open_data(config)).teacher.path == student.segmenter.path
    assert drawn > 50  # a positive finding gets a mask even if the teacher is unsure


class Started(Exception):
    """A training begins."""


def test_a_student_starts_from_its_teacher_or_as_the_teacher_did(workdir, monkeypatch):
    brief = ["--pseudo=teacher", "--segmenter.epochs=0.5", "--rho=0.75"]
    started: list[dict[str, np.ndarray]] = []

    def fit(model, *_, **__):
        started.append({key: np.array(tensor) for key, tensor in to_torch(model).items()})
        raise Started

    config = read_arguments("", arguments(workdir, *brief, "--until=pseudo_masks"))
    run = run_pipeline(config, open_data(config))
    monkeypatch.setattr(segmenter_stage, "fit", fit)
    for start in ("teacher", "encoder"):
        config = read_arguments("", arguments(workdir, *brief, f"--student={start}"))
        with pytest.raises(Started):
            run_pipeline(config, open_data(config))
    teacher, encoder = to_torch(restore(run.teacher.path)), to_torch(restore(run.classifier.path))
    assert started[0].keys() == started[1].keys() == teacher.keys()
    for key, tensor in teacher.items():
        np.testing.assert_array_equal(started[0][key], tensor)
    shared = [key for key in encoder if f"encoder.{key}" in started[1]]
    assert len(shared) > 10
    for key in shared:
        np.testing.assert_array_equal(started[1][f"encoder.{key}"], encoder[key])
    assert any((started[0][key] != started[1][key]).any() for key in teacher)


def test_a_teacher_needs_no_class_activation_maps_unless_there_is_a_gate(workdir):
    brief = ["--pseudo=teacher", "--until=pseudo_masks", "--segmenter.epochs=0.5"]
    stages = ["classifier", "segmenter (teacher)", "pseudo_masks-teacher"]
    assert stages_of(workdir, *brief) == stages
    gate = "--pseudo-masks.gate=1e-9"  # below every probability
    assert stages_of(workdir, *brief, gate) == ["classifier", "cams", *stages[1:]]
    masks = []
    for flags in ([], [gate]):
        config = read_arguments("", arguments(workdir, *brief, *flags))
        masks.append(PseudoMaskSource(made(run_pipeline(config, open_data(config)).pseudo_masks)))
    assert len(masks[0]) == len(masks[1]) > 0
    for one, other in ((masks[0][i], masks[1][i]) for i in range(len(masks[0]))):
        assert (one.image_id, one.native) == (other.image_id, other.native)
        np.testing.assert_array_equal(one.ignored, other.ignored)
        assert one.planes.keys() == other.planes.keys()
        for name, plane in one.planes.items():
            np.testing.assert_array_equal(plane, other.planes[name])


def test_expert_masks_are_drawn_by_patient_and_a_larger_draw_holds_the_smaller(workdir):
    def drawn(*flags):
        return open_data(read_arguments("", arguments(workdir, *flags))).expert_train

    every = drawn("--experts=9999")
    few, more = drawn("--experts=5"), drawn("--experts=9")
    ids = [[source[i]["image_id"] for i in range(len(source))] for source in (few, more)]
    assert (len(few), len(more)) == (5, 9) and set(ids[0]) < set(ids[1])
    assert drawn("--experts=9999").fingerprint == every.fingerprint != few.fingerprint
    cut = {patient_of(i) for i in ids[1]} & {
        patient_of(every[i]["image_id"])
        for i in range(len(every))
        if every[i]["image_id"] not in ids[1]
    }
    assert len(cut) <= 1  # only the last patient may be drawn in part


def test_the_report_of_a_run_without_pseudo_masks(workdir, capsys):
    main(arguments(workdir, "--rho=1", "--segmenter.epochs=0.5"))
    said = capsys.readouterr().out
    assert "Stages: classifier (reused), segmenter" in said and "evaluation" in said
    reports = [json.loads(path.read_text()) for path in workdir.glob("evaluation-*/report.json")]
    (alone,) = [one for one in reports if one["rho"] == 1]
    assert alone["pseudo_masks"] is None
