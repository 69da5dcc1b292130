import jax.numpy as jnp
import numpy as np
import pytest

from chexseg_jax.images import (
    IMAGENET,
    XRV,
    content_cells,
    content_fractions,
    content_mask,
    content_slices,
    letterbox,
    letterbox_masks,
    unletterbox,
)
from chexseg_jax.masks import pack


@pytest.mark.parametrize(("height", "width"), [(40, 30), (30, 40), (32, 32), (61, 47), (7, 300)])
def test_a_letterbox_holds_the_image_in_its_middle(height, width):
    image = np.full((height, width, 1), 200, np.uint8)
    framed = letterbox(image, 32)
    inside = np.asarray(content_mask(jnp.asarray(framed)[None])[0])
    assert (framed[inside] == 200).all()
    assert (framed[~inside] == 0).all()
    rows, columns = content_slices(height, width, 32)
    assert abs((rows.start + rows.stop) / 2 - 16) <= 0.5
    assert abs((columns.start + columns.stop) / 2 - 16) <= 0.5
    assert max(rows.stop - rows.start, columns.stop - columns.start) == 32


@pytest.mark.parametrize(("height", "width"), [(80, 60), (61, 97)])
def test_a_map_goes_back_where_it_came_from(height, width):
    ys, xs = np.mgrid[:height, :width]
    image = ((ys / height + xs / width) * 120).astype(np.uint8)[..., None]
    maps = letterbox(image, 64).astype(np.float32)
    back = unletterbox(maps, height, width)
    assert np.abs(back[..., 0] - image[..., 0])[4:-4, 4:-4].max() < 6


def test_masks_and_image_share_the_frame():
    bits = np.zeros((50, 40), np.uint16)
    bits[10:30, 5:25] = 1 << 3
    image = np.where(bits > 0, 255, 0).astype(np.uint8)[..., None]
    masks, framed = letterbox_masks(bits, 32), letterbox(image, 32)
    assert masks[..., 3].any() and not masks[..., [0, 1, 2, 4, 5, 6, 7, 8, 9]].any()
    np.testing.assert_array_equal(masks[..., 3], framed[..., 0] >= 128)


def test_content_follows_the_pixels_and_holds_the_dark_ones_inside():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    images[0, 2:6, 1:7] = 9
    images[0, 3:5, 2:4] = 0
    expected = np.zeros((8, 8), bool)
    expected[2:6, 1:7] = True
    content = content_mask(jnp.asarray(images))
    np.testing.assert_array_equal(content[0], expected)
    assert not content[1].any()
    np.testing.assert_array_equal(
        content_fractions(content, 2, 4)[0], [[0.25, 0.5, 0.5, 0.25], [0.25, 0.5, 0.5, 0.25]]
    )
    assert content_cells(jnp.asarray(images), 2, 4)[0].tolist() == 2 * [[False, True, True, False]]
    with pytest.raises(ValueError, match="do not divide"):
        content_fractions(content, 3, 4)


def test_normalisation():
    images = jnp.array([0, 255], jnp.uint8).reshape(1, 1, 2, 1)
    found = IMAGENET(images)
    np.testing.assert_allclose(found[0, 0, 0], [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    np.testing.assert_allclose(XRV(images)[0, 0, :, 0], [-1024, 1024])


def test_pack_is_what_letterbox_masks_reads():
    masks = np.zeros((8, 8, 10), bool)
    masks[2:6, 2:6, 9] = True
    np.testing.assert_array_equal(letterbox_masks(pack(masks), 8), masks)
