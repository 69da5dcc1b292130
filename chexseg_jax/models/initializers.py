"""Initial values with the distributions of PyTorch and torchvision.

`jax.nn.initializers` gives the same numbers but compiles a program for every shape, which takes 4 times
as long for DenseNet-121 on a CPU; here shapes share samples of sizes rounded up to powers of two.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]
Initializer = Callable[[jax.Array, Shape], jax.Array]
"""Returns values from a key and the shape of a kernel, (h, w, in, out) or (in, out)."""


def he_normal_fan_in(key: jax.Array, shape: Shape) -> jax.Array:
    """Draw normally with variance 2 / fan in (He et al. 2015, eq. 10); torchvision's DenseNet."""
    return _draw(jax.random.normal, key, shape, math.sqrt(2 / math.prod(shape[:-1])))


def he_normal_fan_out(key: jax.Array, shape: Shape) -> jax.Array:
    """Draw normally with variance 2 / fan out (He et al. 2015, eq. 14); torchvision's ResNet."""
    return _draw(jax.random.normal, key, shape, math.sqrt(2 * shape[-2] / math.prod(shape)))


def uniform_fan_in(key: jax.Array, shape: Shape) -> jax.Array:
    """Draw uniformly within 1 / sqrt(fan in), PyTorch's default for convolutions and linear layers."""
    return uniform(key, shape, math.prod(shape[:-1]))


def uniform(key: jax.Array, shape: Shape, fan_in: int) -> jax.Array:
    """Draw uniformly within 1 / sqrt(`fan_in`); for a bias, whose shape does not give the fan."""
    return _draw(_signed_uniform, key, shape, 1 / math.sqrt(fan_in))


def _signed_uniform(key: jax.Array, shape: Shape) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1)


def _draw(sampler: Initializer, key: jax.Array, shape: Shape, scale: float) -> jax.Array:
    """Return `scale` times a sample, the start of one of a rounded-up size.

    JAX's first n values do not depend on the size of the sample.
    """
    size = math.prod(shape)
    values = sampler(key, (1 << (size - 1).bit_length(),))
    if isinstance(values, jax.core.Tracer):
        return values[:size].reshape(shape) * scale
    return jnp.asarray(np.asarray(values)[:size].reshape(shape) * np.float32(scale))
