import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chexseg_jax.evaluation.metrics import (
    THRESHOLDS,
    auroc,
    count,
    hits,
    interval,
    iou_per_image,
    nan_mean,
    overlap,
    per_image_intervals,
    pooled_intervals,
    stack,
    threshold_bins,
)
from chexseg_jax.evaluation.thresholds import best_ious, best_thresholds, choose_thresholds


@pytest.mark.parametrize("seed", range(3))
def test_one_histogram_equals_twenty_comparisons(seed):
    generator = np.random.default_rng(seed)
    chances = generator.random((13, 11, 4)).astype(np.float32)
    chances[0, :, 0] = THRESHOLDS[:11].astype(np.float32)
    masks = generator.random((13, 11, 4)) < 0.3
    counts = count(threshold_bins(chances), masks)
    for row, threshold in enumerate(THRESHOLDS):
        drawn = chances > threshold
        np.testing.assert_array_equal(counts.intersection[row], (drawn & masks).sum((0, 1)))
        np.testing.assert_array_equal(counts.predicted_area[row], drawn.sum((0, 1)))
        unions = (drawn | masks).sum((0, 1))
        np.testing.assert_allclose(counts.iou()[row], (drawn & masks).sum((0, 1)) / unions)
    np.testing.assert_array_equal(counts.target_area, masks.sum((0, 1)))


def test_a_threshold_is_strict():
    bins = threshold_bins(np.array([0.0, 0.05, 0.0501, 1.0]))
    assert bins.tolist() == [0, 1, 2, 20]


def test_pooled_is_not_the_mean_of_images():
    first = overlap(np.ones((2, 2, 1), bool), np.ones((2, 2, 1)))
    second = overlap(np.ones((4, 4, 1), bool), np.zeros((4, 4, 1)))
    assert stack([first, second]).pooled().iou()[0, 0] == 4 / 20


def test_best_threshold_by_hand_and_none_without_a_truth():
    chances = np.zeros((1, 4, 2), np.float32)
    chances[0, :, 0] = [0.9, 0.62, 0.58, 0.1]
    masks = np.zeros((1, 4, 2), bool)
    masks[0, :2, 0] = True
    found = best_thresholds(count(threshold_bins(chances), masks))
    assert found[0] == pytest.approx(0.6)
    assert np.isnan(found[1])


def test_what_no_threshold_finds_has_none_and_is_never_drawn():
    # Its probability exceeds 0 everywhere and 0.05 only away from the truth: at 0 the IoU would be 1/4.
    chances = np.full((2, 2, 1), 0.01, np.float32)
    chances[0, 0] = 0.9
    masks = np.zeros((2, 2, 1), bool)
    masks[1, 1] = True
    missed = count(threshold_bins(chances), masks)
    assert missed.iou()[0, 0] == 1 / 4
    assert np.isnan(best_thresholds(missed)).all() and best_ious(missed).tolist() == [0]
    chosen = choose_thresholds([missed, missed])
    assert np.isnan(chosen).all() and not (chances > chosen).any()
    found = count(threshold_bins(chances), masks[::-1, ::-1])
    assert choose_thresholds([missed, found]).tolist() == [0.05]


@pytest.mark.parametrize(
    ("truth", "drawn", "only", "expected"),
    [
        ([1, 1, 0, 0], [1, 0, 0, 0], True, 0.5),
        ([1, 1, 0, 0], [0, 0, 0, 0], True, np.nan),
        ([0, 0, 0, 0], [1, 0, 0, 0], True, np.nan),
        ([1, 1, 0, 0], [0, 0, 0, 0], False, 0.0),
        ([0, 0, 0, 0], [1, 0, 0, 0], False, 0.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], False, np.nan),
    ],
)
def test_per_image_iou(truth, drawn, only, expected):
    targets, masks = (np.array(v, bool).reshape(2, 2, 1) for v in (truth, drawn))
    found = iou_per_image(targets, masks, true_pos_only=only)
    np.testing.assert_equal(found, [expected])


def test_hits():
    maps = np.zeros((2, 3, 3), np.float32)
    maps[1, 2] = 1
    targets = np.zeros((2, 3, 3), bool)
    targets[1, 2, 0] = targets[0, 0, 1] = True
    np.testing.assert_equal(hits(maps, targets), [1, 0, np.nan])


def test_auroc_by_hand():
    scores = np.array([0.1, 0.4, 0.4, 0.8])
    assert auroc(scores, np.array([False, True, False, True])) == (0.5 + 1 + 1 + 1) / 4
    assert np.isnan(auroc(scores, np.ones(4, bool)))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_chance_that_a_positive_ranks_higher(pairs):
    scores = np.array([score for score, _ in pairs], float)
    positives = np.array([positive for _, positive in pairs])
    wins = [
        float(p > n) + 0.5 * float(p == n) for p in scores[positives] for n in scores[~positives]
    ]
    expected = np.mean(wins) if wins else np.nan
    np.testing.assert_allclose(auroc(scores, positives), expected)


def test_interval_takes_the_25th_and_the_975th_of_a_thousand():
    found = interval(np.arange(1000.0)[::-1].copy(), 7)
    assert (found.lower, found.upper, found.mean, found.n) == (24.0, 974.0, 499.5, 7)


def test_bootstrap_draws_as_cheXlocalize_does():
    values = np.array([[0.1, np.nan], [0.5, 0.2], [0.9, np.nan]])
    generator = np.random.RandomState(0)
    means = []
    for _ in range(1000):
        drawn = values[generator.choice(3, 3)]
        with np.errstate(invalid="ignore"):
            valid = ~np.isnan(drawn)
            means.append(np.where(valid, drawn, 0).sum(0) / np.maximum(valid.sum(0), 1))
    first = np.sort(np.array(means)[:, 0])
    found = per_image_intervals(values)[0]
    assert found.lower == pytest.approx(first[24])
    assert found.upper == pytest.approx(first[974])
    assert found.mean == pytest.approx(first.mean())
    assert [row.n for row in per_image_intervals(values)] == [3, 1]


def test_pooled_intervals_hold_the_pooled_value():
    generator = np.random.default_rng(0)
    targets = generator.random((12, 6, 6, 2)) < 0.4
    masks = generator.random((12, 6, 6, 2)) < 0.5
    counts = stack([overlap(m, t) for m, t in zip(masks, targets, strict=True)])
    rows, mean = pooled_intervals(counts)
    for k, row in enumerate(rows):
        pooled = (masks & targets)[..., k].sum() / (masks | targets)[..., k].sum()
        assert row.mean == pytest.approx(pooled)
        assert row.lower < row.mean < row.upper
        assert row.n == 12
    assert mean.mean == pytest.approx(np.mean([row.mean for row in rows]))


def test_what_is_drawn_nowhere_has_no_part_in_the_mean():
    targets, masks = np.zeros((4, 2, 2, 2), bool), np.ones((4, 2, 2, 2), bool)
    targets[:, 0, :, 0] = True
    rows, mean = pooled_intervals(
        stack([overlap(m, t) for m, t in zip(masks, targets, strict=True)])
    )
    assert (rows[0].mean, rows[0].n, rows[1].n) == (0.5, 4, 0)
    assert np.isnan(rows[1].mean) and np.isnan(rows[1].lower)
    assert mean.mean == 0.5


def test_nan_mean_of_nothing_is_nan_without_a_warning():
    np.testing.assert_equal(nan_mean(np.array([[np.nan, 1.0], [np.nan, 3.0]])), [np.nan, 2.0])
