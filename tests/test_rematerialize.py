"""Rematerialisation: the same gradients and running statistics, and less kept for the gradient.

XLA for CPUs merges what is computed twice, so that only accelerators need less memory: how much is in
docs/performance.md, and `tests/with_tpu/check_compile.py` sees that their compiler merges nothing.
"""

import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chexseg_jax.images import IMAGENET
from chexseg_jax.models.spec import BackboneSpec, NetworkSpec, build_backbone

BACKBONES = {
    "densenet": BackboneSpec(blocks=(4, 4, 1, 1), growth=4, width=8),
    "resnet": BackboneSpec("resnet", (3, 1, 1, 1), width=8),
}


def gradients_of(spec):
    """Return gradients, new running statistics, and the bytes that are kept for the gradient."""
    graph, params, rest = nnx.split(build_backbone(spec, 3, jax.random.key(0)), nnx.Param, ...)
    pixels = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)

    def loss(params):
        model = nnx.merge(graph, params, rest, copy=True)
        value = jnp.square(model(jnp.asarray(pixels), train=True)).sum()
        return value, nnx.split(model, nnx.Param, ...)[2]

    _, pull, statistics = jax.vjp(loss, params, has_aux=True)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
    return pull(jnp.float32(1))[0], (rest, statistics), kept


@pytest.mark.parametrize("kind", BACKBONES)
def test_less_is_kept_for_the_same_gradients_and_statistics(kind):
    gradients, (before, statistics), kept = gradients_of(BACKBONES[kind])
    found = gradients_of(replace(BACKBONES[kind], rematerialize=True))
    assert found[2] < 0.85 * kept
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, statistics)
    assert max(jax.tree.leaves(moved)) > 0.01
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    for expected, other in ((gradients, found[0]), (statistics, found[1][1])):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), expected, other
        )


def test_specifications_of_older_versions_do_not_say_it():
    spec = NetworkSpec("classifier", BACKBONES["densenet"], 14, 32, 64, IMAGENET)
    stored = json.loads(json.dumps(asdict(spec)))
    del stored["backbone"]["rematerialize"]
    assert NetworkSpec.from_json(stored) == spec
