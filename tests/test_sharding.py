import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chexseg_jax.inference.apply import jit_inference, jit_sharded
from chexseg_jax.models.layers import linear
from chexseg_jax.runtime import cpu
from chexseg_jax.runtime.target import compiling_for, target_platform
from chexseg_jax.training.data import BatchError


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    found = cpu._known_options.__wrapped__
    assert found() == (cpu.YNNPACK_SUMS if jax.default_backend() == "cpu" else {})
    monkeypatch.setattr(cpu, "YNNPACK_SUMS", {"xla_cpu_no_such_thing": "1"})
    assert found() == {}


def test_precision_and_options_follow_the_target():
    at_home = target_platform()
    with compiling_for("tpu"):
        assert cpu.compute_dtype() == jnp.bfloat16 and cpu.compiler_options() == {}
        with compiling_for("cpu"):
            assert cpu.compute_dtype() == jnp.float32
        assert target_platform() == "tpu"
    assert target_platform() == at_home == jax.default_backend()


def test_a_batch_that_does_not_divide_over_the_devices_is_refused_in_inference():
    devices = jax.local_device_count()
    model = linear(3, 2, rngs=nnx.Rngs(0))
    functions = [
        jit_inference(lambda model, rows: model(rows), model),
        jit_sharded(lambda rows: 2 * rows),
    ]
    for function in functions:
        assert len(function(np.ones((2 * devices, 3), np.float32))) == 2 * devices
        with pytest.raises(BatchError, match=rf"a batch of 3 .* {devices} devices; .* multiple of"):
            function(np.ones((3, 3), np.float32))
