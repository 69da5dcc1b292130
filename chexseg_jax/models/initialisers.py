"""Initial values, as PyTorch and torchvision draw them, without a compilation for every shape."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]
Initialiser = Callable[[jax.Array, Shape], jax.Array]
"""From a key and the shape of a kernel, (h, w, in, out) or (in, out), to its values."""


def he_normal_in(key: jax.Array, shape: Shape) -> jax.Array:
    """Normal with variance 2 / fan in (He et al. 2015, eq. 10); torchvision's DenseNet."""
    return draw(jax.random.normal, key, shape, math.sqrt(2 / math.prod(shape[:-1])))


def he_normal_out(key: jax.Array, shape: Shape) -> jax.Array:
    """Normal with variance 2 / fan out (He et al. 2015, eq. 14); torchvision's ResNet."""
    return draw(jax.random.normal, key, shape, math.sqrt(2 * shape[-2] / math.prod(shape)))


def uniform_in(key: jax.Array, shape: Shape) -> jax.Array:
    """Uniform within 1 / sqrt(fan in), PyTorch's own choice for convolutions and linear maps."""
    return uniform(key, shape, math.prod(shape[:-1]))


def uniform(key: jax.Array, shape: Shape, fan_in: int) -> jax.Array:
    """Uniform within 1 / sqrt(`fan_in`), for a bias, whose shape does not tell the fan."""
    return draw(signed_uniform, key, shape, 1 / math.sqrt(fan_in))


def signed_uniform(key: jax.Array, shape: Shape) -> jax.Array:
    """Uniform on [-1, 1)."""
    return jax.random.uniform(key, shape, minval=-1)


def draw(sampler: Initialiser, key: jax.Array, shape: Shape, scale: float) -> jax.Array:
    """Returns `scale` times a sample.

    Outside a trace the sampler sees sizes rounded up to powers of two, and so compiles a dozen
    programs for a network of a hundred different kernels. The values are the same either way.
    """
    size = math.prod(shape)
    values = sampler(key, (1 << (size - 1).bit_length(),))
    if isinstance(values, jax.core.Tracer):
        return values[:size].reshape(shape) * scale
    return jnp.asarray(np.asarray(values)[:size].reshape(shape) * np.float32(scale))
