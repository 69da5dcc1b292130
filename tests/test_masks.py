import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco
from random_masks import random_mask

from chexseg_jax.masks import (
    MaskError,
    area,
    decode_rle,
    encode_rle,
    fill_polygons,
    pack,
    pack_rles,
    rles_of,
    runs_of,
    unpack,
)

MASKS = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(lambda size: arrays(bool, size))


@given(MASKS)
def test_there_and_back(mask):
    rle = encode_rle(mask)
    assert rle["size"] == list(mask.shape)
    np.testing.assert_array_equal(decode_rle(rle), mask)


@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        # Runs of a column-major scan as COCO writes them, five bits a character from "0" on.
        (np.zeros((1, 3), bool), "3"),
        (np.ones((1, 3), bool), "03"),
        (np.array([[0, 1], [0, 1]], bool), "22"),
        (np.array([[0, 1, 0, 1, 0, 0]], bool), "1110L"[:4] + "1"),
        (np.zeros((320, 320), bool), "PPT3"),
    ],
)
def test_known_counts(mask, counts):
    assert encode_rle(mask)["counts"] == counts
    np.testing.assert_array_equal(decode_rle({"size": list(mask.shape), "counts": counts}), mask)


@pytest.mark.parametrize(
    ("rle", "said"),
    [
        ({"size": [2, 2], "counts": ""}, "empty"),
        ({"size": [2, 2], "counts": "1"}, "do not add up"),
        ({"size": [2, 2], "counts": "5"}, "do not add up"),
        ({"size": [2, 2], "counts": "P"}, "middle of a number"),
        ({"size": [2, 2], "counts": "\x7f"}, "alphabet"),
        ({"size": [2, 2], "counts": "é"}, "ASCII"),
        ({"size": [2, 2], "counts": "N6"}, "negative"),
        ({"size": [2, 2], "counts": "oooooooo0"}, "35 bits"),
        ({"size": [10**6, 10**6], "counts": "4"}, "exceeds"),
        ({"size": [0, 2], "counts": "0"}, "positive integers"),
        ({"size": [2], "counts": "4"}, "positive integers"),
        ({"size": [2.0, 2], "counts": "4"}, "positive integers"),
        ({"counts": "4"}, "positive integers"),
        ({"size": [2, 2]}, "counts"),
    ],
)
def test_hostile_masks_are_refused(rle, said):
    with pytest.raises(MaskError, match=said):
        decode_rle(rle)


WHOLE = encode_rle(np.eye(8, dtype=bool))["counts"]


@pytest.mark.parametrize(
    ("size", "counts", "said"),
    [
        # Half of these make pycocotools 2.0.11 return uninitialised memory, or end the process.
        ([100, 100], WHOLE, "do not add up"),
        ([8, 8], "", "empty"),
        ([8, 8], WHOLE[:-1], "do not add up"),
        ([10**6, 10**6], WHOLE, "exceeds the limit"),
        ([65536, 65536], WHOLE, "exceeds the limit"),
        ([4, 4], WHOLE, "do not add up"),
        ([8, 8], "\n garbage \x00", "alphabet"),
        ([0, 0], WHOLE, "positive integers"),
        ([-8, -8], WHOLE, "positive integers"),
    ],
)
def test_masks_that_end_other_decoders_are_refused(size, counts, said):
    with pytest.raises(MaskError, match=said):
        decode_rle({"size": size, "counts": counts})
    np.testing.assert_array_equal(
        decode_rle({"size": [8, 8], "counts": WHOLE}), np.eye(8, dtype=bool)
    )


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools' own
def test_random_masks_are_pycocotools_own():
    rng = np.random.default_rng(0)
    for index in range(1_000):
        mask = random_mask(rng, index)
        ours, theirs = encode_rle(mask), coco.encode(np.asfortranarray(mask, np.uint8))
        assert ours == {"size": theirs["size"], "counts": theirs["counts"].decode()}
        assert np.array_equal(decode_rle(ours), coco.decode(theirs))
        assert area(runs_of(ours)) == coco.area(theirs)


def test_polygons_include_their_outline():
    mask = fill_polygons([[[1, 1], [3, 1], [3, 3], [1, 3]], [[5, 0]]], 5, 6)
    expected = np.zeros((5, 6), bool)
    expected[1:4, 1:4] = expected[0, 5] = True
    np.testing.assert_array_equal(mask, expected)


@given(arrays(bool, (5, 7, 10)))
def test_ten_masks_in_one_image(masks):
    bits = pack(masks)
    np.testing.assert_array_equal(unpack(bits), masks)
    np.testing.assert_array_equal(pack_rles(rles_of(bits)), bits)


def test_a_bad_mask_is_named():
    good = encode_rle(np.ones((2, 2), bool))
    with pytest.raises(MaskError, match=r"Edema.*do not add up"):
        pack_rles({"Edema": {"size": [2, 2], "counts": "9"}})
    with pytest.raises(MaskError, match="Hernia"):
        pack_rles({"Hernia": good})
    with pytest.raises(MaskError, match=r"Edema.*differs"):
        pack_rles({"Lung Opacity": good, "Edema": encode_rle(np.ones((2, 3), bool))})
    with pytest.raises(MaskError, match="no masks"):
        pack_rles({})
