import numpy as np
import pytest

from chexseg_jax.evaluation.chexlocalize import write_gates
from chexseg_jax.evaluation.metrics import (
    THRESHOLDS,
    Counts,
    count,
    nan_mean,
    stack,
    threshold_bins,
)
from chexseg_jax.evaluation.thresholds import Gates, best_gates, pseudo_mask_thresholds
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.stages.evaluation import gated


def counts(intersection, predicted, targets) -> Counts:
    """Counts of images, one pathology, from plain lists."""
    columns = [np.array(some)[:, None] for some in (intersection, predicted, targets)]
    return Counts(columns[0][:, None], columns[1][:, None], columns[2])


def test_a_gate_by_hand():
    # IoUs: 1/2 at probability .9, a false alarm at .3 and at .2, 1/4 at .5, nothing at all at .1.
    some = counts([2, 0, 0, 1, 0], [2, 3, 1, 2, 0], [4, 0, 0, 3, 0])
    found = best_gates(some, np.array([[0.9], [0.3], [0.2], [0.5], [0.1]]))
    # Kept down to .5, the mean is (1/2 + 1/4) / 2; down to .9, 1/4; all of them, 3/16.
    assert found.cutoffs.tolist() == [0.5]
    assert found.ious.tolist() == [pytest.approx(3 / 8)]
    assert found.passes(np.array([[0.5], [0.49]])).tolist() == [[True], [False]]


def test_no_gate_where_all_masks_help_or_nothing_is_drawn():
    good = counts([2, 1], [2, 2], [4, 3])
    assert best_gates(good, np.array([[0.9], [0.2]])).cutoffs.tolist() == [0.0]
    none = best_gates(counts([0, 0], [1, 0], [0, 0]), np.array([[0.9], [0.2]]))
    assert none.cutoffs.tolist() == [0.0] and np.isnan(none.ious).all()


@pytest.mark.parametrize("seed", range(20))
def test_one_pass_is_every_cutoff_tried(seed):
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 3, (12, 3)) * generator.integers(0, 2, (12, 3))
    predicted = generator.integers(0, 4, (12, 3))
    intersection = generator.integers(0, np.minimum(targets, predicted) + 1)
    probabilities = generator.integers(0, 6, (12, 3)) / 5  # with ties
    found = best_gates(Counts(intersection[:, None], predicted[:, None], targets), probabilities)

    def mean(cutoffs):
        kept = probabilities >= cutoffs
        some = Counts((intersection * kept)[:, None], (predicted * kept)[:, None], targets)
        return nan_mean(some.iou()[:, 0])

    tried = np.stack([mean(np.full(3, cutoff)) for cutoff in np.arange(6) / 5])
    is_present = targets.any(0)
    np.testing.assert_allclose(found.ious[is_present], np.nanmax(tried, 0)[is_present])
    np.testing.assert_allclose(mean(found.cutoffs)[is_present], found.ious[is_present])


def test_a_gated_method_is_empty_where_the_gate_is_shut():
    gates = Gates(np.array([0.5, 0.0]), np.array([0.1, 0.1]))
    maps = gated(
        lambda images: np.ones((2, 4, 4, 2), np.float32),
        lambda images: np.array([[0.4, 0.1], [0.6, 0.0]]),
        gates,
    )(np.zeros((2, 4, 4, 1), np.uint8))
    assert maps.max((1, 2)).tolist() == [[0, 1], [1, 1]]


def test_gates_are_written_as_cheXlocalize_writes_them(tmp_path):
    kinds = len(PATHOLOGIES)
    write_gates(tmp_path / "gates.csv", Gates(np.arange(kinds) / 10, np.full(kinds, np.nan)))
    lines = (tmp_path / "gates.csv").read_text().splitlines()
    assert lines[0] == "prob_threshold,mIoU,task" and len(lines) == kinds + 1
    assert lines[1] == f"{PATHOLOGIES.index('Airspace Opacity') / 10},,Airspace Opacity"


def test_pseudo_masks_take_a_threshold_of_their_own_only_with_enough_expert_masks():
    maps = np.zeros((3, 4, 4, 2), np.float32)
    maps[..., 0] = 0.3
    maps[:, 1:3, 1:3, 0] = 0.6  # the first finding is what exceeds 0.3
    maps[..., 1] = 0.8
    maps[:, :1, :, 1] = 0.9  # the second what exceeds 0.8
    masks = np.stack([maps[..., 0] > 0.3, maps[..., 1] > 0.8], -1)
    masks[1:, ..., 1] = False
    maps[1:, ..., 1] = 0
    some = stack([count(threshold_bins(m), t) for m, t in zip(maps, masks, strict=True)])
    own = pseudo_mask_thresholds(some, fewest=1)
    assert 0.3 <= own[0] < 0.6 and 0.8 <= own[1] < 0.9
    found = pseudo_mask_thresholds(some, fewest=2)  # the second has one mask
    assert found[0] == own[0]
    assert found[1] in THRESHOLDS
    # Above 0.3 both have 12 + 16 pixels of which 12 + 4 are right; above 0.8, 4 of 4 and 12 missed.
    assert 0.3 <= found[1] < 0.6
    none = Counts(0 * some.intersection, some.predicted_area, 0 * some.target_area)
    assert pseudo_mask_thresholds(none, fewest=1).tolist() == [0.5, 0.5]
