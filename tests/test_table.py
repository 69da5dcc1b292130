import csv
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from chexseg_jax.evaluation.metrics import (
    Counts,
    bootstrap_indices,
    hierarchical_intervals,
    patient_of,
    pooled_intervals,
)
from chexseg_jax.evaluation.scoring import ImageScores, read_counts, write_counts
from chexseg_jax.images import IMAGENET
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.stages.seeds import SeedsConfig
from chexseg_jax.stages.segmenter import training_steps
from experiments import sweep, table
from experiments.comparison import compare, experts
from experiments.run import pipeline
from experiments.run.config import PHANTOM
from experiments.run.data import Concatenated, Data

KINDS = len(PATHOLOGIES)


def counts(shared, drawn, truths) -> Counts:
    """Counts of images from lists of rows, one column a pathology."""
    rows = [np.array(some, np.int64) for some in (shared, drawn, truths)]
    return Counts(rows[0][:, None], rows[1][:, None], rows[2])


def some_counts(seed: int, share: float, images: int = 30) -> Counts:
    """Counts whose truths are always the same, and whose predictions cover a share of them."""
    truths = np.random.default_rng(0).integers(0, 2, (images, KINDS)) * 100
    noise = np.random.default_rng(seed).uniform(-0.05, 0.05, (images, KINDS))
    shared = (truths * (share + noise)).astype(np.int64)
    return counts(shared, shared + 10, truths)


def test_a_paired_difference_by_hand():
    # Image 0: IoUs 1 against 1/2. Image 1: 1/3 against 0. One pathology.
    better = counts([[4], [1]], [[4], [2]], [[4], [2]])
    worse = counts([[2], [0]], [[2], [2]], [[4], [2]])
    rows, mean = hierarchical_intervals([better], [worse])
    assert mean.mean == rows[0].mean == pytest.approx(5 / 7 - 2 / 8)
    by_draw = {0: 1 - 1 / 2, 1: 5 / 7 - 2 / 8, 2: 1 / 3 - 0}
    expected = np.sort([by_draw[int(row.sum())] for row in bootstrap_indices(2)])
    assert (mean.lower, mean.upper) == pytest.approx((expected[24], expected[974]))


def test_pairs_are_narrower_than_their_ends_and_vanish_for_twins():
    one, other = some_counts(1, 0.6), some_counts(2, 0.5)
    difference = hierarchical_intervals([one], [other])[1]
    ends = [pooled_intervals(some)[1] for some in (one, other)]
    assert difference.mean == pytest.approx(ends[0].mean - ends[1].mean)
    assert difference.lower > 0
    assert difference.upper - difference.lower < min(end.upper - end.lower for end in ends)
    twins = hierarchical_intervals([one, other], [one, other])[1]
    assert (twins.mean, twins.lower, twins.upper) == (0, 0, 0)


def test_other_images_are_refused():
    one = some_counts(1, 0.6)
    other = replace(one, target_area=one.target_area + 1)
    with pytest.raises(ValueError, match="cannot be compared"):
        hierarchical_intervals([one], [other])


def test_seeds_are_drawn_and_then_images_for_all_of_them():
    # Two images, three runs, whose IoUs are 1, 1/2, 0 on either image: only the seeds vary.
    runs = [counts([[n]] * 2, [[n]] * 2, [[4]] * 2) for n in (4, 2, 0)]
    mean = hierarchical_intervals(runs)[1]
    drawn = np.sort([np.array([1, 0.5, 0])[row].mean() for row in bootstrap_indices(3, seed=1)])
    assert mean.mean == pytest.approx(0.5)
    assert (mean.lower, mean.upper) == pytest.approx((drawn[24], drawn[974]))
    # With runs that are all alike, only the images vary, and more runs do not make it narrower.
    one, alike = some_counts(1, 0.6), [some_counts(1, 0.6)] * 3
    ends = [hierarchical_intervals(runs)[1] for runs in (alike, [one])]
    assert (ends[0].lower, ends[0].upper) == pytest.approx((ends[1].lower, ends[1].upper))
    # Pairs: where every run is better by 1/4 on every image, the difference has no width.
    better = [counts([[n]] * 2, [[n]] * 2, [[4]] * 2) for n in (4, 3, 2)]
    worse = [counts([[n]] * 2, [[n]] * 2, [[4]] * 2) for n in (3, 2, 1)]
    less = hierarchical_intervals(better, worse)[1]
    assert (less.mean, less.lower, less.upper) == pytest.approx((0.25, 0.25, 0.25))


def test_a_patients_images_are_drawn_together():
    one = some_counts(1, 0.6, images=8)
    twice = one[np.repeat(np.arange(8), 2)]
    patients = [f"patient{i // 2:05}" for i in range(16)]
    apart, together = (pooled_intervals(twice, names)[1] for names in (None, patients))
    alone = pooled_intervals(one)[1]
    ends = [(row.mean, row.lower, row.upper) for row in (alone, together)]
    assert ends[0] == pytest.approx(ends[1])
    assert apart.upper - apart.lower < 0.85 * (together.upper - together.lower)
    assert patient_of("patient64541_study1_view2_lateral") == "patient64541"
    assert patient_of("00001335_006") == "00001335_006"


def test_the_interval_over_three_seeds_is_students():
    # Mean 2, standard deviation 1: 4.3027 / sqrt 3 = 2.4841.
    assert compare.seeds_interval([1, 2, 3]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)
    assert np.isnan(compare.seeds_interval([1])).all()


def write_fakes(path: Path, run: Counts, images: int = 30) -> None:
    """Writes the counts of a run and what it is held to; a reader for the first twenty images."""
    others = {"cam": some_counts(8, 0.2), "prior": some_counts(9, 0.1)}
    scores = []
    for i in range(images):
        mine = {"run": run, **others, **({"human": some_counts(7, 0.8)} if i < 20 else {})}
        row = {name: Counts(*(v[i] for v in vars(some).values())) for name, some in mine.items()}
        nothing = np.zeros((1, 1), np.uint16)
        scores.append(ImageScores(f"image {i}", True, row, {}, np.zeros(KINDS), nothing))
    write_counts(path, scores)


def test_counts_come_back(tmp_path):
    write_fakes(tmp_path / "counts.npz", some_counts(3, 0.5))
    found = read_counts(tmp_path / "counts.npz")
    assert set(found) == {"run", "cam", "prior", "human"}
    assert found["human"][0].tolist() == list(range(20))
    for mine, other in zip(
        vars(found["run"][1]).values(), vars(some_counts(3, 0.5)).values(), strict=True
    ):
        np.testing.assert_array_equal(mine, other)


class Rows(list):
    """A source of as many numbers as asked for."""

    def __init__(self, fingerprint, count):
        super().__init__(range(count))
        self.fingerprint = fingerprint
        self.image_ids = [f"{fingerprint} {i}" for i in range(count)]


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """Runs that only write counts: the better, the nearer rho is to 0.9; returns what was made."""
    made = []

    def fake(config, data):
        seed, rho = config.segmenter_seed, config.rho_of(len(data.expert_train))
        name = f"evaluation-{config.pseudo}-{rho}-{seed}-{config.encoder_start}"
        name += "".join(f"-{count}" for count in config.experts)
        name += f"-{config.segmenter.average}-{config.segmenter.epochs}"
        rows = [
            {"name": "classifier", "folder": "c", "seconds": 2.0, "reused": False},
            {"name": "evaluation", "folder": name, "seconds": 1.0, "reused": False},
        ]
        made.append((config.pseudo, rho, seed, config.encoder_start))
        (tmp_path / name).mkdir(exist_ok=True)
        share = 0.6 - 0.3 * abs(rho - 0.9) + 0.01 * (seed - 18)
        write_fakes(tmp_path / name / "counts.npz", some_counts(seed, share))
        folder = SimpleNamespace(path=tmp_path / name)
        return pipeline.Run(config, data, evaluation=folder, stages=rows)

    @dataclass(frozen=True)
    class Fake:
        """The parts of `Data` that a comparison looks at."""

        test: SimpleNamespace
        mapped: range
        expert_train: Rows
        hidden: Rows | None

    test = SimpleNamespace(image_ids=[f"image {i}" for i in range(30)])
    data = Fake(test, range(200), Rows("experts", 14), Rows("hidden", 150))
    monkeypatch.setattr(compare, "run_pipeline", fake)
    monkeypatch.setattr(compare, "open_data", lambda config: data)
    return made


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_table_has_the_papers_rows(faked, tmp_path, capsys):
    table.main([f"--workdir={tmp_path}", "--seeds", "17", "18", "19"])
    rows = read_csv(tmp_path / "table" / "table.csv")
    assert [row["name"] for row in rows] == [
        *("weak (CAM)", "weak (IRNet)", "full", "full, twice the steps"),
        *("teacher", "teacher, averaged"),
        *("CheXseg (CAM)", "CheXseg (IRNet)"),
        *("classifier's maps", "location prior", "second reader"),
    ]
    assert len(faked) == 24 and {rho for _, rho, *_ in faked} == {0, 0.41, 0.9, 1}  # 14 / (14 + 20)
    weak, chexseg, reader = rows[1], rows[7], rows[10]
    seeds = [float(weak[f"seed_{seed}"]) for seed in (17, 18, 19)]
    assert float(weak["mean"]) == pytest.approx(np.mean(seeds))
    lower, upper = compare.seeds_interval(seeds)
    assert (float(weak["seeds_lower"]), float(weak["seeds_upper"])) == pytest.approx((lower, upper))
    less = float(chexseg["mean"]) - float(weak["mean"])
    assert float(weak["difference"]) == pytest.approx(less)
    assert float(weak["difference_lower"]) > 0
    assert chexseg["difference"] == chexseg["reference"] == reader["seed_17"] == ""
    assert float(weak["mean"]) == pytest.approx(np.mean([float(weak[k]) for k in PATHOLOGIES]))
    assert float(reader["difference_upper"]) < 0
    assert (tmp_path / "table" / "table.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "95 % interval over 3 seeds and 30 images (30 patients)" in said
    assert float(weak["lower"]) < float(weak["mean"]) < float(weak["upper"])
    assert "Cost: classifier 2.0 s; evaluation 24.0 s for 24. In all 0.4 min." in said
    stored = json.loads((tmp_path / "table" / "table.json").read_text())
    assert stored["rows"][10]["mean"]["n"] == 20 and stored["seeds"] == [17, 18, 19]


def test_the_reader_is_compared_on_the_readers_images(faked, tmp_path):
    table.main([f"--workdir={tmp_path}", "--seeds", "17"])
    reader = read_csv(tmp_path / "table" / "table.csv")[-1]
    mine, theirs = (
        pooled_intervals(some[np.arange(20)])[1].mean
        for some in (some_counts(17, 0.59), some_counts(7, 0.8))
    )
    assert float(reader["difference"]) == pytest.approx(mine - theirs)


def test_the_initialisation_table(faked, tmp_path):
    table.main([f"--workdir={tmp_path}", "--seeds", "17", "--inits", "random,m=x.pth", "chexpert"])
    assert {start for *_, start in faked} == {"random", Path("x.pth"), "classifier"}
    rows = read_csv(tmp_path / "table" / "inits.csv")
    assert [row["name"] for row in rows][3:6] == ["full, random", "full, m", "full, chexpert"]
    assert rows[3]["reference"] == rows[4]["reference"] == "full, chexpert"


def test_the_curve_over_numbers_of_expert_masks(faked, tmp_path, capsys):
    table.main([f"--workdir={tmp_path}", "--seeds", "17", "18", "--experts", "5", "10"])
    rows = read_csv(tmp_path / "table" / "experts.csv")
    assert [(row["method"], row["experts"]) for row in rows] == [
        *((method, "5") for method in ("full", "full, twice the steps", "maps", "teacher")),
        *((method, "10") for method in ("full", "full, twice the steps", "maps", "teacher")),
        ("all masks", ""),
    ]
    longer = "full, twice the steps"
    assert [row["reference"] for row in rows[:4]] == ["", "full, 5", "full, 5", f"{longer}, 5"]
    assert rows[8]["reference"] == f"{longer}, 10"
    assert float(rows[1]["difference"]) == pytest.approx(
        float(rows[0]["mean"]) - float(rows[1]["mean"])
    )
    assert (tmp_path / "table" / "experts.png").read_bytes().startswith(b"\x89PNG")
    assert "teacher, 10" in capsys.readouterr().out


def test_the_bound_trains_on_every_mask_for_the_steps_of_teacher_and_student():
    data = SimpleNamespace(mapped=range(200), expert_train=Rows("e", 14), hidden=Rows("h", 150))
    arms = experts.arms_of(replace(PHANTOM, experts=(5, 10)), 0.5, data)
    bound = arms[experts.Point(experts.BOUND, None)].config.segmenter
    largest = training_steps(PHANTOM.segmenter, 10, 200, 1.0)
    assert training_steps(bound, 164, 200, 1.0) == pytest.approx(2 * largest, abs=1)
    longer = arms[experts.Point("full, twice the steps", 10)].config
    assert longer.rho == 1 and longer.segmenter.epochs == 2 * PHANTOM.segmenter.epochs


def test_sources_one_after_another():
    both = Concatenated(Rows("a", 3), Rows("b", 2))
    assert [both[i] for i in range(len(both))] == [0, 1, 2, 0, 1] and both.fingerprint == "a+b"


def test_the_sweep_and_the_papers_curve(faked, tmp_path):
    flags = ["--rhos", "1", "0", "0.9", "--seeds", "17", "18", "--kinds", "irnet", "cam"]
    sweep.main([f"--workdir={tmp_path}", *flags])
    rows = read_csv(tmp_path / "sweep" / "sweep.csv")
    assert [(row["pseudo"], float(row["rho"])) for row in rows] == [
        *(("irnet", rho) for rho in (0, 0.9, 1)),
        *(("cam", rho) for rho in (0, 0.9, 1)),
    ]
    assert [float(row["paper"]) for row in rows] == [0.156, 0.267, 0.246, 0.142, 0.270, 0.246]
    assert len(faked) == 10  # rho = 1 is one for both kinds
    assert rows[2] == {**rows[5], "pseudo": "irnet"}
    assert float(rows[1]["mean"]) > float(rows[0]["mean"]) and float(rows[1]["difference"]) < 0
    assert (tmp_path / "sweep" / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("main", "flags", "said"),
    [
        (table.main, ["--seeds", "17", "17"], "all different"),
        (table.main, ["--rho", "1"], "between 0 and 1"),
        (table.main, ["--inits", "imagenet"], "NAME=FILE"),
        (sweep.main, ["--rhos", "2"], "within"),
    ],
)
def test_what_makes_no_sense_is_refused(main, flags, said, capsys, tmp_path):
    with pytest.raises((SystemExit, ValueError)) as caught:
        main([f"--workdir={tmp_path}", *flags])
    assert said in capsys.readouterr().err + str(caught.value)


def test_a_segmenters_seed_or_start_redoes_the_last_two_stages_only(tmp_path, monkeypatch):
    trained = []
    stages = ("classifier", "cams", "seeds", "irnet", "pseudo_masks", "segmenter", "evaluation")
    for name in stages:
        module = getattr(pipeline, f"{name}_stage")

        def finish(*_, folder, stage=name, **given):
            trained.append((stage, given.get("seed")))
            folder.finish(images=0)

        monkeypatch.setattr(module, "run", finish)
    for name in ("restore", "spec_of", "RecordReader", "PseudoMaskSource"):
        monkeypatch.setattr(pipeline, name, lambda *_: SimpleNamespace(normalization=IMAGENET))
    monkeypatch.setattr(pipeline, "jit_inference", lambda *_: None)
    for name in ("walked_maps", "cam_maps", "choose"):
        monkeypatch.setattr(pipeline.pseudo_masks_stage, name, lambda *_: None)
    monkeypatch.setattr(pipeline.NetworkSpec, "build", lambda *_: None)
    monkeypatch.setattr(pipeline.pseudo_masks_stage, "walked_maps", lambda *_: None)
    monkeypatch.setattr(pipeline, "start_from", lambda *_, **given: None)

    class Images:
        fingerprint = "x"

        def __len__(self):
            return 100

    data = Data(**dict.fromkeys(Data.__dataclass_fields__, Images()))
    config = replace(PHANTOM, workdir=tmp_path, pseudo="irnet", rho=0.9)

    def run(**changes):
        trained.clear()
        pipeline.run_pipeline(replace(config, **changes), data)
        return list(trained)

    assert len(run()) == 7
    assert run(segmenter_seed=config.seed) == []  # the same as none
    assert len(run(rho=1)) == 2
    assert run(rho=1.0) == []
    assert run(rho=1, pseudo="cam") == run(rho=1, seeds=SeedsConfig(foreground=0.9)) == []
    assert run(segmenter_seed=3) == [("segmenter", 3), ("evaluation", None)]
    assert run(encoder_start="random") == [("segmenter", 17), ("evaluation", None)]
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    assert run(encoder_start=weights) == [("segmenter", 17), ("evaluation", None)]
    weights.write_bytes(b"another")
    assert len(run(encoder_start=weights)) == 2
    assert run(encoder_start="random", segmenter_seed=3)[0] == ("segmenter", 3)
    # An encoder of its own that is not to be trained is not.
    assert len(run(encoder="resnet18", encoder_start="random")) == 2
    assert asdict(config)["encoder_start"] == "classifier"
