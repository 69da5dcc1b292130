import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_networks import CLASSIFIER, IRNET, SEGMENTER, SIDE, STATED

from chexseg_jax.inference import export as export_module
from chexseg_jax.inference.export import ExportError, export, load_segmenter
from chexseg_jax.training.checkpoints import to_pure_dicts
from chexseg_jax.weights.convert import load_torch

FRAMES = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 1)).astype(np.uint8)
SPECS = {"segmenter": SEGMENTER, "classifier": CLASSIFIER, "irnet": IRNET}
SHAPES = {"segmenter": (3, SIDE, SIDE, 10), "classifier": (3, 14), "irnet": (3, 16, 16)}


def perturbed(spec):
    """Build a network whose variables are not the initial ones."""
    model = spec.build()
    generator = np.random.default_rng(1)
    _, state = nnx.split(model)
    moved = jax.tree.map(lambda v: v + generator.uniform(0, 0.1, v.shape).astype(v.dtype), state)
    nnx.update(model, moved)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export a network of each kind: (model, folder) by kind."""
    networks = {}
    for kind, spec in SPECS.items():
        folder = tmp_path_factory.mktemp(kind)
        model = perturbed(spec)
        export(model, spec, folder, **STATED)
        networks[kind] = (model, folder)
    return networks


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(to_pure_dicts(model)[1:])]


@pytest.mark.parametrize("kind", SPECS)
def test_orbax_and_safetensors_hold_every_bit(exported, kind):
    model, folder = exported[kind]
    loaded = export_module.load(folder, kind)
    for expected, value in zip(leaves(model), leaves(loaded.model), strict=True):
        np.testing.assert_array_equal(expected, value)
    again = SPECS[kind].build()
    load_torch(folder / "model.safetensors", again)
    left_out = 0 if kind == "classifier" else 2  # an encoder's head: its kernel and its bias
    pairs = zip(leaves(model), leaves(again), strict=True)
    same = [np.array_equal(expected, value) for expected, value in pairs]
    assert same.count(False) == left_out


@pytest.mark.parametrize("kind", SPECS)
def test_the_function_runs_with_jax_alone(exported, kind, tmp_path):
    _, folder = exported[kind]
    np.save(tmp_path / "frames.npy", FRAMES)
    program = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("flax", "chexseg_jax", "orbax", "optax"):
            raise ImportError(name)
sys.meta_path.insert(0, Wall())
import pathlib, jax, jax.export, numpy
function = jax.export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
assert function.platforms == ("cpu", "cuda", "tpu")
numpy.save(sys.argv[3], function.call(numpy.load(sys.argv[2])))
"""
    paths = [folder / "function.jax", tmp_path / "frames.npy", tmp_path / "result.npy"]
    subprocess.run([sys.executable, "-c", program, *map(str, paths)], check=True)
    result = np.load(paths[2])
    assert result.shape == SHAPES[kind]
    np.testing.assert_allclose(result, export_module.load(folder, kind)(FRAMES), atol=2e-5)


def test_any_number_of_frames(exported):
    segmenter = load_segmenter(str(exported["segmenter"][1]))
    batch = segmenter(FRAMES)
    np.testing.assert_allclose(segmenter(FRAMES[1:2]), batch[1:2], atol=2e-5)
    assert segmenter.thresholds.tolist() == [(k + 1) / 20 for k in range(10)]
    with pytest.raises(ExportError, match="use its `letterbox`"):
        segmenter(FRAMES[:, :32, :32])


def test_bfloat16_rounds_once_and_every_form_agrees(exported, tmp_path):
    model, float32 = exported["segmenter"]
    export(model, SEGMENTER, tmp_path, dtype=jnp.bfloat16, **STATED)
    loaded = load_segmenter(tmp_path)
    for expected, value in zip(leaves(model), leaves(loaded.model), strict=True):
        np.testing.assert_array_equal(expected.astype(jnp.bfloat16).astype(np.float32), value)
    function = jax.export.deserialize(bytearray((tmp_path / "function.jax").read_bytes()))
    np.testing.assert_allclose(function.call(FRAMES), loaded(FRAMES), atol=2e-5)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path, float32)]
    assert sizes[0] < 0.65 * sizes[1]


def test_folders_that_are_no_export_are_refused(exported, tmp_path):
    with pytest.raises(ExportError, match=r"no export.*experiments\.export"):
        load_segmenter(tmp_path)
    with pytest.raises(ExportError, match="of kind classifier, not segmenter"):
        load_segmenter(exported["classifier"][1])
    (tmp_path / "config.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(ExportError, match="KeyError"):
        load_segmenter(tmp_path)
    with pytest.raises(ExportError, match="no thresholds"):
        config = {"kind": "classifier"}
        _ = export_module.ExportedNetwork(None, CLASSIFIER, config).thresholds


def test_an_export_holds_each_platforms_form_of_a_depthwise_convolution(exported):
    _, folder = exported["segmenter"]
    stored = jax.export.deserialize(bytearray((folder / "function.jax").read_bytes()))
    alone, model = {}, perturbed(SEGMENTER)
    for platform in stored.platforms:
        function = jax.jit(lambda images: model(SEGMENTER.normalization(images)))
        images = jax.ShapeDtypeStruct((2, SIDE, SIDE, 1), jnp.uint8)
        alone[platform] = jax.export.export(function, platforms=[platform])(images).mlir_module()
    groups = re.compile(r"feature_group_count = ([2-9]|\d\d+)")
    assert groups.search(alone["cuda"]) and groups.search(alone["tpu"])
    assert not groups.search(alone["cpu"])
    assert "stablehlo.dot_general" in alone["cpu"]  # 1 x 1 convolutions
    module = stored.mlir_module()
    # The file holds both forms, in the branches of a case by platform.
    assert groups.search(module) and "stablehlo.case" in module
    assert module.count("stablehlo.slice") > alone["cuda"].count("stablehlo.slice")
