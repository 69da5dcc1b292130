import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from random_masks import random_mask

from chexseg_jax.images import resize
from chexseg_jax.pseudolabels.thresholds import (
    fill_holes,
    grey_levels,
    hard_masks,
    heatmap_to_mask,
    otsu,
    soft_masks,
)


def mask_of(text):
    return np.array([[mark == "#" for mark in row] for row in text.split()])


def slow_fill(mask):
    """All that the empty pixels around the mask cannot reach by their sides, less lone pixels."""
    reached = np.zeros(tuple(n + 2 for n in mask.shape), bool)
    reached[0, 0] = True
    empty = ~np.pad(mask, 1)
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= empty
        if (grown == reached).all():
            break
        reached = grown
    whole = np.pad(~reached[1:-1, 1:-1], 1)
    height, width = mask.shape
    near = sum(
        whole[dy : dy + height, dx : dx + width].astype(int) for dy in range(3) for dx in range(3)
    )
    return whole[1:-1, 1:-1] & (near > 1)


def test_otsu_by_hand():
    # Two levels: every cut between them parts them alike, and the first is taken.
    assert otsu(np.array([[10, 10, 200]], np.uint8)) == 10
    # Cuts at 0, 1 and 9: between-class variances 24.5, 27.6 and 8.4 of twelve pixels, by the formula.
    levels = np.array([[0] * 6 + [1] * 2 + [9] * 2 + [10] * 2], np.uint8)
    assert otsu(levels) == 1


def test_otsu_of_one_level_is_zero():
    assert otsu(np.full((3, 3), 77, np.uint8)) == 0


@given(st.lists(st.integers(0, 255), min_size=2, max_size=40))
def test_otsu_is_as_good_as_any_cut(values):
    levels = np.array([values], np.uint8)

    def parted(cut):
        low, high = levels[levels <= cut].astype(float), levels[levels > cut].astype(float)
        if not low.size or not high.size:
            return 0.0
        return low.size * high.size * (low.mean() - high.mean()) ** 2

    best = max(parted(cut) for cut in range(256))
    assert parted(otsu(levels)) == pytest.approx(best)


def test_a_ring_is_filled_and_a_speck_is_dropped():
    mask = mask_of("""
        .......#
        .####...
        .#..#...
        .#..#...
        .####...
        ........
        #.......
    """)
    expected = mask_of("""
        ........
        .####...
        .####...
        .####...
        .####...
        ........
        ........
    """)
    np.testing.assert_array_equal(fill_holes(mask), expected)


def test_a_rectangle_stays_as_it_is():
    mask = mask_of("""
        .....
        .###.
        .###.
        .....
    """)
    np.testing.assert_array_equal(fill_holes(mask), mask)


def test_corners_join():
    mask = mask_of("""
        #..
        .#.
        ..#
    """)
    np.testing.assert_array_equal(fill_holes(mask), mask)


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_filling_is_what_the_outside_cannot_reach(mask):
    np.testing.assert_array_equal(fill_holes(mask), slow_fill(mask))


def test_larger_masks_are_filled_alike():
    rng = np.random.default_rng(0)
    for index in range(200):
        mask = random_mask(rng, index)
        np.testing.assert_array_equal(fill_holes(mask), slow_fill(mask))


def test_a_threshold_is_strict_and_fills_nothing():
    heatmap = np.array([[0.0, 2.0, 4.0], [4.0, 1.6, 4.0]], np.float32)
    found = heatmap_to_mask(heatmap, 2, 3, 0.5)
    np.testing.assert_array_equal(found, [[False, False, True], [True, False, True]])


def test_a_constant_map_is_empty():
    heatmap = np.full((3, 4), 0.7, np.float32)
    assert not heatmap_to_mask(heatmap, 6, 8).any()
    assert not heatmap_to_mask(heatmap, 6, 8, 0.4).any()
    assert not grey_levels(heatmap).any()


def test_range_and_sign_do_not_matter():
    heatmap = np.random.default_rng(0).random((6, 5)).astype(np.float32)
    expected = heatmap_to_mask(heatmap, 30, 25)
    np.testing.assert_array_equal(heatmap_to_mask(8 * heatmap - 4, 30, 25), expected)


def test_enlarging_is_bilinear_between_the_middles_of_cells():
    row = np.array([[0.0, 4.0]], np.float32)
    np.testing.assert_allclose(resize(row, 1, 4), [[0.0, 1.0, 3.0, 4.0]])


def test_soft_masks_are_one_half_at_the_threshold_and_hard_above_it():
    thresholds = np.array([0.2, 0.5, 0.8], np.float32)
    maps = np.linspace(0, 1, 101, dtype=np.float32)[None, :, None, None] * np.ones(3, np.float32)
    soft, hard = soft_masks(maps, thresholds), hard_masks(maps, thresholds)
    np.testing.assert_array_equal(soft >= 128, hard == 255)
    assert (np.diff(soft.astype(int), axis=1) >= 0).all()
    assert soft[0, [0, 100]].tolist() == [[[0, 0, 0]], [[255, 255, 255]]]
    assert soft[0, 10, 0].tolist() == [64, 26, 16]  # 255 x .1 / (2 x .2), (2 x .5), (2 x .8)
    assert soft[0, 90, 0].tolist() == [239, 230, 191]  # 255 (1 - .1 / (2 x .8)), ...


def test_soft_masks_at_the_ends_of_the_thresholds():
    maps = np.array([0, 0.5, 1], np.float32)[None, :, None, None] * np.ones(2, np.float32)
    thresholds = np.array([0, 1], np.float32)
    soft, hard = soft_masks(maps, thresholds), hard_masks(maps, thresholds)
    np.testing.assert_array_equal(soft >= 128, hard == 255)
    assert soft[0, :, 0].tolist() == [[0, 0], [191, 64], [255, 127]]
