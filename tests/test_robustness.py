import numpy as np

from chexseg_jax.masks import pack
from chexseg_jax.pathologies import PATHOLOGIES
from chexseg_jax.training.data import Mapped, letterboxed
from experiments.robustness import EXPOSURES, exposed, small


class Phantoms:
    """Three images of other shapes, with a mask each."""

    fingerprint = "three"

    def __len__(self):
        return 3

    def __getitem__(self, index):
        generator = np.random.default_rng(int(index))
        height, width = 90 + 7 * int(index), 70
        masks = np.zeros((height, width, len(PATHOLOGIES)), bool)
        masks[20:50, 13:40, index] = True
        return {
            "image_id": str(index),
            "image": generator.integers(0, 256, (height, width, 1)).astype(np.uint8),
            "labels": np.zeros(14, np.int8),
            "masks": pack(masks),
        }


def test_small_images_are_letterboxed_to_the_same_pixels():
    for native, scaled in zip(
        (letterboxed(Phantoms(), 32)[i] for i in range(3)),
        (letterboxed(small(Phantoms(), 32), 32)[i] for i in range(3)),
        strict=True,
    ):
        np.testing.assert_array_equal(native["images"], scaled["images"])
        np.testing.assert_array_equal(native["masks"], scaled["masks"])


def test_exposures_by_hand():
    levels = np.array([0, 51, 100, 204, 255], np.uint8)
    source = Mapped(Phantoms(), lambda _, example: {**example, "image": levels[None, :, None]})

    def of(name):
        return exposed(source, EXPOSURES[name])[0]["image"].ravel().tolist()

    assert of("as it is") == levels.tolist()
    assert of("gamma 2") == [0, 10, 39, 163, 255]
    assert of("narrow window") == [0, 0, 59, 255, 255]
    assert of("wide window") == [64, 89, 114, 166, 191]
    assert of("low contrast") == [51, 64, 76, 102, 115]
