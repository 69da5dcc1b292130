from dataclasses import asdict, replace

import numpy as np
import pytest
from small_networks import SEGMENTER

from chexseg_jax.images import content_slices, letterbox
from chexseg_jax.models.spec import NetworkSpec
from chexseg_jax.photometry import TABLES, adjust
from chexseg_jax.training.data import Subset, letterboxed, network_input

ADJUSTED = [name for name in TABLES if name != "as-is"]


def levels(values):
    return np.array([values], np.uint8)


@pytest.mark.parametrize("photometry", TABLES)
@pytest.mark.parametrize("image", [levels([137] * 9), levels([0] * 9), levels([200]), levels([0])])
def test_an_image_of_one_level_stays_as_it_is(image, photometry):
    np.testing.assert_array_equal(adjust(image, photometry), image)


@pytest.mark.parametrize("photometry", ADJUSTED)
def test_two_levels_become_black_and_white(photometry):
    np.testing.assert_array_equal(
        adjust(levels([90, 100, 100, 90, 100]), photometry), levels([0, 255, 255, 0, 255])
    )


def test_equalisation_by_hand():
    # Above the lowest level are 1, 2 and 1 of 4 pixels: 1/4, 3/4 and 4/4 of 255, rounded halves up.
    image = levels([10, 10, 20, 30, 30, 250])
    np.testing.assert_array_equal(adjust(image, "equalize"), levels([0, 0, 64, 191, 191, 255]))


def test_what_is_equalised_stays_as_it_is():
    image = np.repeat(np.arange(256), 3).astype(np.uint8).reshape(32, 24)
    np.testing.assert_array_equal(adjust(image, "equalize"), image)


def test_percentiles_by_hand():
    # Of 200 pixels one is darkest and one brightest, half a percent each: the percentiles are 10 and 60.
    image = levels([3] + [10] * 80 + [35] * 40 + [60] * 78 + [255])
    expected = levels([0] + [0] * 80 + [128] * 40 + [255] * 78 + [255])
    np.testing.assert_array_equal(adjust(image, "percentile"), expected)


def test_medians_by_hand():
    # Stretched, the median is a quarter of white: the exponent is 1/2, which makes it half of white.
    image = levels([20] * 40 + [60] * 30 + [180] * 40)  # 40 of 160 levels above the lowest
    expected = levels([0] * 40 + [128] * 30 + [255] * 40)
    np.testing.assert_array_equal(adjust(image, "median"), expected)
    # Of an image that is half black the exponent is at its bound, 1/4.
    black = levels([0] * 60 + [16] * 20 + [255] * 20)
    found = adjust(black, "median")
    np.testing.assert_array_equal(found, levels([0] * 60 + [128] * 20 + [255] * 20))


@pytest.mark.parametrize(("gamma", "slope"), [(0.5, 1), (2, 1), (1, 0.25), (0.7, 0.5)])
def test_a_median_undoes_gamma_and_window_together(gamma, slope):
    rows, columns = np.mgrid[:60, :50]
    image = (60 + 3 * rows + columns // 4).astype(np.uint8)
    exposed = np.rint(255 * (0.1 + slope * (image / 255) ** gamma * 0.9)).astype(np.uint8)
    apart = adjust(exposed, "median").astype(int) - adjust(image, "median")
    assert np.abs(apart).mean() < 5 < np.abs(exposed.astype(int) - image).mean()


@pytest.mark.parametrize("photometry", TABLES)
def test_grey_levels_keep_their_order(photometry):
    image = np.random.default_rng(0).integers(0, 256, (40, 30)).astype(np.uint8)
    changed = adjust(image, photometry).astype(int)
    assert changed.shape == image.shape
    assert (np.diff(changed.ravel()[np.argsort(image, axis=None, kind="stable")]) >= 0).all()


def test_equalisation_undoes_a_gamma():
    image = np.random.default_rng(0).integers(0, 50, (40, 30)).astype(np.uint8) * 5
    bright = np.rint(255 * (image / 255) ** 0.7).astype(np.uint8)
    assert np.unique(bright).size == np.unique(image).size  # no two levels became one
    np.testing.assert_array_equal(adjust(bright, "equalize"), adjust(image, "equalize"))


@pytest.mark.parametrize("photometry", ADJUSTED)
@pytest.mark.parametrize("shape", [(80, 20), (30, 64), (1, 1)])
def test_padding_is_black_and_in_no_histogram(photometry, shape):
    image = np.random.default_rng(1).integers(90, 140, (*shape, 1)).astype(np.uint8)
    plain, framed = letterbox(image, 32), letterbox(image, 32, photometry)
    inside = content_slices(*shape, 32)
    np.testing.assert_array_equal(framed[inside][..., 0], adjust(plain[inside][..., 0], photometry))
    framed[inside] = 0
    assert not framed.any()


class OneImage:
    """A source of one image, whose photometry it says, or does not."""

    fingerprint = "one"

    def __init__(self, **said):
        pixels = np.random.default_rng(2).integers(50, 90, (40, 30, 1)).astype(np.uint8)
        self.example = {"image_id": "a", "image": pixels, "labels": np.zeros(14, np.int8), **said}

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.example


def test_a_network_sees_what_the_source_says():
    stated = OneImage(photometry="equalize")
    seen = letterboxed(Subset(stated, [0]), 32)[0]["images"]
    np.testing.assert_array_equal(seen, letterbox(stated.example["image"], 32, "equalize"))
    np.testing.assert_array_equal(seen, network_input(stated.example, 32))
    silent = letterboxed(OneImage(), 32)[0]["images"]
    np.testing.assert_array_equal(silent, letterbox(stated.example["image"], 32))


def test_a_specification_says_its_photometry():
    content = asdict(replace(SEGMENTER, photometry="percentile"))
    assert NetworkSpec.from_json(content).photometry == "percentile"
    del content["photometry"]
    assert NetworkSpec.from_json(content) == SEGMENTER  # an older one: as it is
    with pytest.raises(ValueError, match="photometry 'newer' is unknown"):
        NetworkSpec.from_json({**content, "photometry": "newer"})
