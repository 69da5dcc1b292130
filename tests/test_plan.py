"""The preset `paper` against the paper's numbers, and which images a run uses for what."""

from dataclasses import replace

import numpy as np
import pytest

from chexseg_jax.evaluation.metrics import Counts
from chexseg_jax.models.spec import DENSENET121, RESNET18
from chexseg_jax.pathologies import COMMON_PATHOLOGIES, PATHOLOGIES
from chexseg_jax.stages.segmenter import selection_scores
from datasets.errors import DataError
from experiments import table
from experiments.comparison.plan import Sizes, resolve
from experiments.run import data as data_module
from experiments.run.config import CHEXPERT, PAPER, PHANTOM, WEAK_ROWS, read_arguments
from experiments.run.data import open_data

ROWS = {
    # Name: rho, maps, pseudo-masks, expert masks, learning rate, steps (20 epochs of 8).
    "weak (CAM)": (0, 20_000, 20_000, 0, 1e-4, 50_000),
    "weak (IRNet)": (0, 20_000, 20_000, 0, 1e-4, 50_000),
    "full": (1, 0, 0, 147, 1e-3, 368),
    "CheXseg (CAM)": (0.9, 20_000, 100, 147, 1e-3, 618),
    "CheXseg (IRNet)": (0.9, 20_000, 100, 147, 1e-3, 618),
}


def test_rho_is_the_papers_and_with_a_teacher_by_the_number_of_expert_masks():
    taught = [CHEXPERT.rho_of(count) for count in (10, 20, 40, 80, 147)]
    assert taught == [0.33, 0.5, 0.67, 0.8, 0.88]
    assert replace(PHANTOM, pseudo="irnet").rho_of(20) == PAPER.rho_of(20) == 0.9
    assert replace(PHANTOM, rho=0.0).rho_of(20) == 0


def paper_table() -> table.TableConfig:
    return table.TableConfig(PAPER, **WEAK_ROWS["paper"])


def test_every_row_of_the_papers_preset_is_the_papers():
    arms = {arm.name: arm.config for arm in table.arms_of(paper_table())}
    assert ROWS.keys() <= arms.keys()
    for name, (rho, maps, pseudo, experts, rate, steps) in ROWS.items():
        config, found = arms[name], resolve(arms[name], Sizes())
        assert (config.rho, config.image_size, config.views) == (rho, 320, "all")
        assert (found.maps, found.pseudo_masks, found.experts) == (maps, pseudo, experts)
        # DenseNet-121 for the maps, ResNet-18 for the encoder: Adam at 1e-4, batch 16, three epochs of
        # all 223,414 images from ImageNet weights, validated every 4,800 of them.
        assert (config.classifier.network, config.encoder) == (DENSENET121, "resnet18")
        assert config.encoder_classifier.network == RESNET18
        for training, settings in (
            (found.classifier, config.classifier),
            (found.encoder, config.encoder_classifier),
        ):
            assert (training.start, training.images, training.steps) == (
                "imagenet",
                223_414,
                41_890,
            )
            assert (training.batch_size, training.epochs, training.learning_rate) == (16, 3, 1e-4)
            assert settings.every * settings.batch_size == 4800
            assert (settings.augment, settings.schedule, settings.policy) == (
                0,
                "constant",
                "ignore",
            )
            assert settings.pooling.kind == "gap"
        segmenter = config.segmenter
        assert (found.segmenter.learning_rate, found.segmenter.steps) == (rate, steps)
        assert found.segmenter.images == pseudo + experts
        assert (segmenter.batch_size, segmenter.epochs, segmenter.select) == (8, 20, "common")
        assert (segmenter.width, segmenter.rates, segmenter.dropout) == (256, (12, 24, 36), 0.5)
        assert (segmenter.augment, segmenter.loss, segmenter.schedule) == (0, "dice", "constant")
        assert (config.seeds.foreground, config.seeds.background) == (0.3, 0.05)
        if found.irnet:
            assert (found.irnet.start, found.irnet.images) == ("imagenet", 20_000)
            assert (found.irnet.batch_size, found.irnet.learning_rate) == (16, 0.1)
            assert (config.irnet.radius, config.pseudo_masks.steps) == (10, 8)
        assert bool(found.irnet) == ("IRNet" in name)


def test_a_dry_run_prints_the_rows_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "run_comparison", None)
    table.main(["--preset", "paper", "--dry-run", f"--workdir={tmp_path}"])
    said = capsys.readouterr().out
    assert "223,414 images from imagenet, 41,890 steps of 16" in said
    assert "20,000 images, 100 of their pseudo-masks (irnet)" in said
    assert all(name in said for name in ROWS) and "NOT THE PAPER'S" not in said
    assert not any(tmp_path.iterdir())
    table.main(["--preset", "paper", "--dry-run", "--classifier.init", "None"])
    said = capsys.readouterr().out
    assert said.count("NOT THE PAPER'S") >= len(ROWS) and "--classifier.init imagenet" in said
    assert "223,414 images from random weights" in said


def test_a_missing_start_is_one_loud_line_in_the_papers_preset_alone():
    both = read_arguments(
        "", ["--preset=paper", "--classifier.init", "None", "--encoder-init", "None"]
    )
    assert both.warning and both.warning.startswith("NOT THE PAPER'S")
    assert "--classifier.init imagenet and --encoder-init imagenet" in both.warning
    assert PAPER.warning is PHANTOM.warning is None
    assert "encoder" not in (replace(both, encoder_start="random").warning or "")


def test_the_checkpoint_is_chosen_by_the_pathologies_selected():
    common = np.array([name in COMMON_PATHOLOGIES for name in PATHOLOGIES])
    drawn = np.tile(np.where(common, 60, 10), (20, 1))
    drawn[0] = 100  # above 0 everything is drawn, which no checkpoint is chosen for
    counts = Counts(drawn, drawn, np.full(10, 100))
    assert selection_scores(counts, "all")["score"] == pytest.approx(0.3)
    assert selection_scores(counts, "common")["score"] == pytest.approx(0.6)
    nowhere = Counts(drawn, drawn, np.where(common, 0, 100))
    assert selection_scores(nowhere, "common") == {"score": 0.0} | {
        f"iou/{name}": 0.1 for name in PATHOLOGIES if name not in COMMON_PATHOLOGIES
    }


class Images:
    fingerprint = "abc"

    def __init__(self, image_ids):
        self.image_ids = image_ids

    def __len__(self):
        return len(self.image_ids)

    def __getitem__(self, index):
        return {"image_id": self.image_ids[index]}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Settings whose data are ids alone: twelve images of six patients, every fourth a lateral."""
    ids = [
        f"patient{i // 2:05}_study1_view{i}_{'lateral' if i % 4 == 3 else 'frontal'}"
        for i in range(12)
    ]
    monkeypatch.setattr(data_module, "available", lambda *_: {})
    monkeypatch.setattr(data_module, "open_source", lambda *_: Images(ids))
    return replace(PHANTOM, data_dir=(tmp_path,))


def test_maps_are_of_some_of_the_images_that_the_classifier_sees(prepared):
    whole = open_data(prepared)
    assert whole.mapped is whole.train and "mapped" not in whole.sources()
    data = open_data(replace(prepared, weak=8, maps=3))
    assert (len(data.train), len(data.mapped)) == (8, 3)
    assert set(data.mapped.image_ids) < set(data.train.image_ids)
    assert [data.mapped[i]["image_id"] for i in range(3)] == data.mapped.image_ids
    assert open_data(replace(prepared, weak=8)).train.fingerprint == data.train.fingerprint
    assert data.mapped.fingerprint != data.train.fingerprint


def test_frontal_views_alone_are_another_data_set(prepared):
    whole, some = open_data(prepared), open_data(replace(prepared, views="frontal"))
    for name, source in some.sources().items():
        assert len(source) == 9 and not any("lateral" in image_id for image_id in source.image_ids)
        assert "abc+frontal" in source.fingerprint != whole.sources()[name].fingerprint
    assert [some.test[i]["image_id"] for i in range(9)] == some.test.image_ids
    assert data_module.frontal_indices(["00001335_006", "a_lateral"]) == [0]


def test_views_that_are_not_there_are_refused(prepared, monkeypatch):
    monkeypatch.setattr(data_module, "open_source", lambda *_: Images(["p_study1_view1_lateral"]))
    with pytest.raises(DataError, match="no frontal view"):
        open_data(replace(prepared, views="frontal"))
