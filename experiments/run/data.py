"""The data of a run: prepared data sets, or phantoms."""

import os
from dataclasses import asdict, dataclass, replace
from typing import SupportsIndex

import jax
import numpy as np

from chexseg_jax.evaluation.metrics import patient_of
from chexseg_jax.runtime.sharding import wait_for_all
from chexseg_jax.training.data import Example, Source, Subset, sample_indices
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


def with_experts(data: Data, config: Config) -> Data:
    """Return the data with `--experts` of its expert masks for training, all of them if not given.

    Whole patients are drawn in a random order, so that a larger draw holds the smaller ones.

    Raises:
        ValueError: more than one number is given.
    """
    if not config.experts:
        return data
    if len(config.experts) > 1:
        raise ValueError("a run takes one number of --experts; experiments.table takes several")
    (count,), source = config.experts, data.expert_train
    if count >= len(source) or not isinstance(source, PreparedSource):
        return data
    patients = [patient_of(image_id) for image_id in source.image_ids]
    order = np.random.default_rng(config.seed).permutation(sorted(set(patients))).tolist()
    ranked = sorted(range(len(source)), key=lambda index: order.index(patients[index]))
    return replace(data, expert_train=Subset(source, sorted(ranked[:count])))


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

    data = Data(
        train=Subset(train, sample_indices(len(train), config.weak, config.seed)),
        valid=open_source(data_dir, "chexpert", "valid", config.photometry),
        expert_train=masked("expert_train"),
        expert_val=masked("expert_val"),
        test=masked("test"),
        hidden=masked("hidden") if hidden else None,
    )
    return data if len(config.experts) > 1 else with_experts(data, config)


class Concatenated:
    """The examples of several sources, one source after another."""

    def __init__(self, *sources: Source) -> None:
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])
        self.fingerprint = "+".join(source.fingerprint for source in sources)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: SupportsIndex, /) -> Example:
        """Return one example."""
        place = int(index)
        number = int(np.searchsorted(self._ends, place, side="right"))
        return self._sources[number][place - int(self._ends[number]) + len(self._sources[number])]


def with_hidden(data: Data) -> Data:
    """Return the data with the hidden masks of weakly labelled images among the expert masks.

    Raises:
        ValueError: there are none.
    """
    if data.hidden is None:
        raise ValueError("only phantoms have hidden masks")
    return replace(data, expert_train=Concatenated(data.expert_train, data.hidden))
