"""How weights are drawn."""

import jax
import jax.numpy as jnp
from flax import nnx


def bias(shape, names, dtype: str) -> nnx.Param:
    """Zeros that carry their logical axes."""
    return nnx.Param(jnp.zeros(shape, dtype), out_sharding=names)


def weight(rngs: nnx.Rngs, shape, names, fan_in: int, dtype: str) -> nnx.Param:
    """A normal matrix of standard deviation fan_in ** -0.5 that carries its logical axes."""
    wide = jnp.float64 if dtype == "float64" else jnp.float32
    value = jax.random.normal(rngs.params(), shape, wide) * jnp.asarray(fan_in**-0.5, wide)
    return nnx.Param(value.astype(dtype), out_sharding=names)
