import json
from dataclasses import asdict, replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chexseg_jax.images import CHEXPERT, IMAGENET
from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.spec import RESNET50, BackboneSpec, DecoderSpec, NetworkSpec
from chexseg_jax.runtime.stage_folder import write_json
from chexseg_jax.training.checkpoints import Checkpoints, restore, to_pure_dicts
from chexseg_jax.weights.convert import start_from, to_torch
from chexseg_jax.weights.safetensors import write_safetensors


def tiny(outputs=3, seed=0):
    return DenseNet(outputs, blocks=(1, 1, 1, 1), growth=4, stem=8, rngs=nnx.Rngs(seed))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.safetensors"
    write_safetensors(path, to_torch(tiny(seed=1)))
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
    with pytest.raises(
        ValueError, match=r"tiny\.safetensors.*--classifier\.normalization=imagenet"
    ):
        start_from(file, tiny(), CHEXPERT)


def test_a_specification_survives_json():
    for kind, decoder in (("classifier", None), ("segmenter", DecoderSpec(16, (2, 4, 6), 0.1))):
        spec = NetworkSpec(kind, RESNET50, 42, 16, 320, IMAGENET, dilated=False, decoder=decoder)
        stored = json.loads(json.dumps({**asdict(spec), "more": 1}))
        assert NetworkSpec.from_json(stored) == spec


def test_restore_needs_the_folder_alone(tmp_path):
    spec = NetworkSpec(
        "classifier", BackboneSpec(blocks=(1, 1, 1, 1), growth=4, width=8), 14, 32, 64, IMAGENET
    )
    model = spec.build(3)
    _, parameters, statistics = to_pure_dicts(model)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        items = {
            "parameters": parameters,
            "statistics": statistics,
            "optimiser": {"0": np.zeros(1)},
        }
        checkpoints.save(1, items, 0.5)
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        restore(tmp_path)
    write_json(tmp_path / "manifest.json", {"network": asdict(spec)})
    for key, tensor in to_torch(restore(tmp_path)).items():
        np.testing.assert_array_equal(tensor, to_torch(model)[key])
    dilated = restore(tmp_path, replace(spec, output_stride=16))
    assert dilated.stages(jnp.zeros((1, 64, 64, 3)))[-1].shape[1] == 4
