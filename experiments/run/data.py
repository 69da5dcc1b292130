"""The data of a run: prepared data sets, or phantoms."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, SupportsIndex

import jax
import numpy as np

from chexseg_jax.evaluation.metrics import patients_of
from chexseg_jax.photometry import Photometry
from chexseg_jax.runtime.sharding import wait_for_all
from chexseg_jax.training.data import Example, Source, Subset, sample_indices
from datasets.errors import DataError
from datasets.prepare import prepare_phantoms
from datasets.source import available, open_source
from experiments.run.config import Config


class NamedSource(Source, Protocol):
    """A source that knows the ids of its images."""

    image_ids: list[str]


class NamedSubset(Subset):
    """The examples of a named source at the given indices."""

    def __init__(self, source: NamedSource, indices: Sequence[int]) -> None:
        super().__init__(source, indices)
        self.image_ids = [source.image_ids[i] for i in indices]


@dataclass(frozen=True)
class Data:
    """The sources of one run: images with labels, expert masks, and hidden masks of the former.

    `mapped` are the images of `train` that get maps and pseudo-masks.
    """

    train: NamedSource
    mapped: NamedSource
    valid: NamedSource
    expert_train: NamedSource
    expert_val: NamedSource
    test: NamedSource
    hidden: NamedSource | None

    def sources(self) -> dict[str, NamedSource]:
        """Return the sources by name: without hidden masks where there are none, each once."""
        named = {name: source for name, source in vars(self).items() if source is not None}
        if self.mapped is self.train:
            del named["mapped"]
        return named


def frontal_indices(image_ids: Sequence[str]) -> list[int]:
    """Return the indices of frontal views by CheXpert's ids; an id of another form is of a frontal."""
    return [i for i, image_id in enumerate(image_ids) if not image_id.endswith("_lateral")]


def _of_views(source: NamedSource, views: Literal["all", "frontal"]) -> NamedSource:
    """Select the images of the views; the fingerprint names them.

    Raises:
        DataError: there are none.
    """
    if views == "all":
        return source
    selected = NamedSubset(source, frontal_indices(source.image_ids))
    if not len(selected):
        raise DataError(f"{source.fingerprint}: no frontal view is there; leave --views out")
    selected.fingerprint = f"{source.fingerprint}+{views}"
    return selected


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
    if count >= len(source):
        return data
    patients = patients_of(source.image_ids)
    order = np.random.default_rng(config.seed).permutation(sorted(set(patients))).tolist()
    ranked = sorted(range(len(source)), key=lambda index: order.index(patients[index]))
    return replace(data, expert_train=NamedSubset(source, sorted(ranked[:count])))


def open_all(
    data_dirs: Sequence[Path], name: str, split: str, photometry: Photometry = "as-is"
) -> NamedSource:
    """Open one split of a data set in all folders of prepared data that have it.

    Raises:
        DataError: none has it, or two have an image of the same id.
    """
    having = [path for path in data_dirs if split in available(path).get(name, [])]
    sources = [open_source(path, name, split, photometry) for path in having or data_dirs[:1]]
    if len(sources) == 1:
        return sources[0]
    joined = Concatenated(*sources)
    if twice := [image_id for image_id, n in Counter(joined.image_ids).items() if n > 1]:
        raise DataError(
            f"{', '.join(map(str, having))}: {twice[0]} is in the split {split} of {name} of two; "
            "leave one out, or prepare it from other names of files"
        )
    return joined


def open_data(config: Config) -> Data:
    """Open the data of a run, making phantoms first without `--data-dir`."""
    if config.warning and jax.process_index() == 0:
        print(config.warning)
    data_dirs = config.data_dir
    if data_dirs is None:
        data_dirs = (config.workdir / "phantoms",)
        if jax.process_index() == 0:
            print(
                "No --data-dir: running on synthetic chests. For CheXpert, prepare it with "
                "`python -m datasets chexpert --raw DIR --data-dir data` (and chexlocalize), then "
                "add `--data-dir data`."
            )
            prepare_phantoms(
                data_dirs[0],
                seed=config.seed,
                workers=os.cpu_count() or 0,
                **asdict(config.phantoms),
            )
        wait_for_all("phantoms")
    hidden = any("hidden" in available(path).get("chexlocalize", []) for path in data_dirs)

    def labelled(split: str, name: str = "chexpert") -> NamedSource:
        return _of_views(open_all(data_dirs, name, split, config.photometry), config.views)

    def masked(split: str) -> NamedSource:
        return labelled(split, "chexlocalize")

    train = labelled("train")
    weak = NamedSubset(train, sample_indices(len(train), config.weak, config.seed))
    chosen = sample_indices(len(weak), config.maps, config.seed)
    data = Data(
        train=weak,
        mapped=weak if len(chosen) == len(weak) else NamedSubset(weak, chosen),
        valid=labelled("valid"),
        expert_train=masked("expert_train"),
        expert_val=masked("expert_val"),
        test=masked("test"),
        hidden=masked("hidden") if hidden else None,
    )
    return data if len(config.experts) > 1 else with_experts(data, config)


class Concatenated:
    """The examples of several sources, one source after another."""

    def __init__(self, *sources: NamedSource) -> None:
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])
        self.fingerprint = "+".join(source.fingerprint for source in sources)
        self.image_ids = [image_id for source in sources for image_id in source.image_ids]

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
