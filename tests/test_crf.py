from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexseg_jax.pseudolabels import crf
from chexseg_jax.pseudolabels.crf import CrfConfig, refine, seeds_from_cams


def slow_refine(label, image, config, stride):
    """Mean field with both kernels as whole matrices, in float64."""
    height, width = label.shape
    ys, xs = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    places = np.stack([ys, xs], -1).reshape(-1, 2) * stride
    apart = ((places[:, None] - places[None]) ** 2).sum(-1)
    greys = image.reshape(-1).astype(np.float64)
    contrast = 3 * (greys[:, None] - greys[None]) ** 2
    near = np.exp(-apart / (2 * config.smoothness_reach**2))
    alike = np.exp(
        -apart / (2 * config.appearance_reach**2) - contrast / (2 * config.appearance_contrast**2)
    )

    def normalized(kernel):
        scale = 1 / np.sqrt(kernel.sum(1))
        return scale[:, None] * kernel * scale[None]

    kernel = config.smoothness * normalized(near) + config.appearance * normalized(alike)
    certainty = np.log(config.confidence / (1 - config.confidence))
    unary = np.where(label.reshape(-1), certainty, -certainty)
    chance = 1 / (1 + np.exp(-unary))
    for _ in range(config.iterations):
        # Potts: each label is held up by the neighbours that carry it.
        held = kernel @ np.stack([1 - chance, chance], 1)
        chance = 1 / (1 + np.exp(-(unary + held[:, 1] - held[:, 0])))
    return chance.reshape(height, width)


@pytest.mark.parametrize("stride", [1.0, 4.0])
@pytest.mark.parametrize("iterations", [0, 1, 7])
def test_equals_mean_field_with_whole_kernels(stride, iterations):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 60, (9, 11, 1))
    label = generator.random((9, 11)) < 0.4
    config = CrfConfig(iterations=iterations)
    found = refine(
        jnp.asarray(label)[None, ..., None], jnp.asarray(image)[None], config, stride=stride
    )
    expected = slow_refine(label, image, config, stride)
    np.testing.assert_allclose(found[0, ..., 0], expected, atol=2e-5)


def test_more_cells_than_a_tile(monkeypatch):
    generator = np.random.default_rng(1)
    image = jnp.asarray(generator.integers(0, 60, (1, 9, 11, 1)))
    label = jnp.asarray(generator.random((1, 9, 11, 2)) < 0.4)
    whole = refine(label, image)
    monkeypatch.setattr("chexseg_jax.pseudolabels.crf.TILE", 16)
    np.testing.assert_allclose(refine(label, image), whole, atol=1e-5)


GOLDEN = Path(__file__).parent / "goldens" / "parity" / "crf.npz"


def test_no_product_is_rounded_on_any_platform():
    shapes = [jax.ShapeDtypeStruct((1, 24, 24, count), jnp.float32) for count in (10, 1)]
    function = jax.jit(lambda maps, image: refine(maps > 0.5, image))
    for platform in ("cpu", "cuda", "tpu"):
        with jax.default_matmul_precision("bfloat16"):
            module = jax.export.export(function, platforms=[platform])(*shapes).mlir_module()
        products = [line for line in module.splitlines() if "stablehlo.dot_general" in line]
        assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def rounded_products(rows, columns):
    """Squared distances from a matrix product whose operands are rounded to bfloat16, as on a TPU."""
    few, many = (features.astype(jnp.bfloat16).astype(jnp.float32) for features in (rows, columns))
    squares = (rows**2).sum(-1)[:, None] + (columns**2).sum(-1)[None]
    return jnp.maximum(squares - 2 * few @ many.T, 0)


def test_distances_from_rounded_products_would_not_agree_with_pydensecrf(monkeypatch):
    with np.load(GOLDEN) as arrays:
        image, label, reference = (arrays[f"2/{name}"] for name in ("image", "label", "t1_p0.7"))

    def share_that_differs():
        labels, images = jnp.asarray(label != 0)[None, ..., None], jnp.asarray(image[None, ..., :1])
        found = refine(labels, images, CrfConfig(iterations=1))
        return float(((found[0, ..., 0] > 0.5) != (reference.argmax(0) > 0)).mean())

    assert share_that_differs() < 0.01
    monkeypatch.setattr(crf, "_squared_distances", rounded_products)
    assert share_that_differs() > 0.04


def test_a_speck_in_a_flat_image_is_smoothed_away():
    label = jnp.zeros((1, 12, 12, 1), bool).at[0, 6, 6, 0].set(True)
    assert not bool((refine(label, jnp.full((1, 12, 12, 1), 90)) > 0.5).any())


def seeds(cams, label):
    image = jnp.zeros((1, 12, 12, 1)).at[0, :, 6:].set(200.0)
    return seeds_from_cams(
        cams, image, jnp.array([[label]]), foreground=0.3, background=0.05, stride=4.0
    )


def test_seeds_follow_the_image_and_the_label():
    cams = jnp.full((1, 12, 12, 1), 0.01).at[0, :, :6].set(1.0).at[0, :, 6:8].set(0.2)
    positive = seeds(cams, 1)
    assert bool((positive[0, :, :6] == 1).all())
    assert bool((positive[0, :, 10:] == 0).all())
    assert bool((seeds(cams, 0) == 0).all())
    assert bool((seeds(cams, -1) == -1).all())


def test_a_map_of_zeros_seeds_nothing():
    assert bool((seeds(jnp.zeros((1, 12, 12, 1)), 1) == 0).all())
