"""The data of a run: prepared data sets, or phantoms."""

import os
from dataclasses import asdict, dataclass

import jax
import numpy as np

from chexseg_jax.evaluation.metrics import patient_of
from chexseg_jax.runtime.sharding import wait_for_all
from chexseg_jax.training.data import Source, Subset, sample_indices
from datasets.prepare import prepare_phantoms
from datasets.source import PreparedSource, available, open_source
from experiments.run.config import Config


@dataclass(frozen=True)
class Data:
    """The sources of one run: images with labels, expert masks, and hidden masks of the former."""

    train: Source
    valid: Source
    expert_train: Source
    expert_val: Source
    test: PreparedSource
    hidden: PreparedSource | None

    def sources(self) -> dict[str, Source]:
        """Return the sources by name, without hidden masks where there are none."""
        return {name: source for name, source in vars(self).items() if source is not None}


def _experts(source: PreparedSource, count: int | None, seed: int) -> Source:
    """Draw `count` images, whole patients in a random order; a larger draw holds the smaller ones."""
    if count is None or count >= len(source):
        return source
    patients = [patient_of(image_id) for image_id in source.image_ids]
    order = np.random.default_rng(seed).permutation(sorted(set(patients))).tolist()
    ranked = sorted(range(len(source)), key=lambda index: order.index(patients[index]))
    return Subset(source, sorted(ranked[:count]))


def open_data(config: Config) -> Data:
    """Open the data of a run, making phantoms first without `--data-dir`."""
    data_dir = config.data_dir
    if data_dir is None:
        data_dir = config.workdir / "phantoms"
        if jax.process_index() == 0:
            print(
                "No --data-dir: running on synthetic chests. For CheXpert, prepare it with "
                "`python -m datasets chexpert --raw DIR --data-dir data` (and chexlocalize), then "
                "add `--data-dir data`."
            )
            prepare_phantoms(
                data_dir, seed=config.seed, workers=os.cpu_count() or 0, **asdict(config.phantoms)
            )
        wait_for_all("phantoms")
    train = open_source(data_dir, "chexpert", "train", config.photometry)
    hidden = "hidden" in available(data_dir).get("chexlocalize", [])

    def masked(split: str) -> PreparedSource:
        return open_source(data_dir, "chexlocalize", split, config.photometry)

    return Data(
        train=Subset(train, sample_indices(len(train), config.weak, config.seed)),
        valid=open_source(data_dir, "chexpert", "valid", config.photometry),
        expert_train=_experts(masked("expert_train"), config.experts, config.seed),
        expert_val=masked("expert_val"),
        test=masked("test"),
        hidden=masked("hidden") if hidden else None,
    )
