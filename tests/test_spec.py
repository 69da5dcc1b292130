import numpy as np
import pytest
from flax import nnx

from chexseg_jax.images import CHEXPERT, IMAGENET
from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.weights.convert import start_from, to_torch
from chexseg_jax.weights.safetensors import save_safetensors


def tiny(outputs=3, seed=0):
    return DenseNet(outputs, blocks=(1, 1, 1, 1), growth=4, stem=8, rngs=nnx.Rngs(seed))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_safetensors(path, to_torch(tiny(seed=1)))
    return path


def test_weights_are_taken_with_the_head_or_without(file):
    with_head, without = tiny(), tiny()
    start_from(file, with_head, IMAGENET)
    start_from(file, without, IMAGENET, head=False)
    given, fresh = to_torch(tiny(seed=1)), to_torch(tiny())
    for key, tensor in to_torch(with_head).items():
        np.testing.assert_array_equal(tensor, given[key])
    for key, tensor in to_torch(without).items():
        kept = fresh if key.startswith("classifier.") else given
        np.testing.assert_array_equal(tensor, kept[key])


def test_a_head_for_other_outputs_is_left_out(file):
    start_from(file, tiny(outputs=5), IMAGENET, head=False)
    with pytest.raises(ValueError, match=r"tiny\.safetensors: classifier.*shape"):
        start_from(file, tiny(outputs=5), IMAGENET)


def test_another_normalisation_names_the_flag(file):
    with pytest.raises(ValueError, match=r"tiny\.safetensors.*--classify\.pixels=imagenet"):
        start_from(file, tiny(), CHEXPERT)
