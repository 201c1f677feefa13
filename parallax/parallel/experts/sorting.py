"""Where each expert's rows begin once they are sorted."""

import jax
import jax.numpy as jnp


def first_of_each(key_R: jax.Array, experts: int) -> jax.Array:
    """[e + 1] int32: how many keys are below 0, 1, ..., e. One comparison with each, no loop."""
    bounds = jnp.arange(experts + 1, dtype=jnp.int32)
    return (key_R[None, :] < bounds[:, None]).sum(axis=1, dtype=jnp.int32)
