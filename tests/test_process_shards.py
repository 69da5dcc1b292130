from dataclasses import dataclass

import numpy as np
import pytest

from chexseg_jax.evaluation.metrics import Counts
from chexseg_jax.runtime import process_shards
from chexseg_jax.runtime.process_shards import all_gather, shard_for_process
from chexseg_jax.training.data import Subset


@dataclass
class Numbers:
    """Examples that are their own index."""

    count: int
    fingerprint: str = "numbers"

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"number": int(index)}


def become(monkeypatch, index, processes):
    monkeypatch.setattr("jax.process_count", lambda: processes)
    monkeypatch.setattr("jax.process_index", lambda: index)


@pytest.mark.parametrize(
    ("processes", "examples"), [(1, 7), (2, 7), (3, 7), (4, 8), (8, 3), (5, 1)]
)
def test_what_shares_come_to_is_in_the_order_of_the_examples(monkeypatch, processes, examples):
    source, rows = Numbers(examples), []
    for index in range(processes):
        become(monkeypatch, index, processes)
        shard = Subset(source, shard_for_process(examples))
        rows.append(np.array([shard[i]["number"] for i in range(len(shard))]) + 2**40)
    assert len({len(row) for row in rows}) == 1
    of_bytes = [row.view(np.uint8).reshape(len(row), -1) for row in rows]
    monkeypatch.setattr(
        process_shards.multihost_utils, "process_allgather", lambda mine: np.stack(of_bytes)
    )
    found = all_gather(rows[-1], examples)
    assert found.dtype == np.int64 and found.tolist() == list(range(2**40, 2**40 + examples))


def test_counts_keep_their_shapes_and_their_types(monkeypatch):
    generator = np.random.default_rng(0)
    every = Counts(*(generator.integers(0, 99, (4, *shape)) for shape in ((3, 2), (3, 2), (2,))))
    become(monkeypatch, 1, 2)
    gathers = lambda mine: np.stack([other, mine])  # noqa: E731
    monkeypatch.setattr(process_shards.multihost_utils, "process_allgather", gathers)
    for name in ("intersection", "predicted_area", "target_area"):
        rows = getattr(every, name)
        other = np.ascontiguousarray(rows[::2]).view(np.uint8).reshape(2, -1)
        assert (all_gather(rows[1::2], 4) == rows).all()
    monkeypatch.setattr(
        process_shards.multihost_utils, "process_allgather", lambda mine: np.stack([mine] * 2)
    )
    both = all_gather(every[np.arange(2)], 4)
    assert both.intersection.shape == (4, 3, 2) and both.target_area.shape == (4, 2)
    assert (both.predicted_area == every.predicted_area[[0, 0, 1, 1]]).all()
