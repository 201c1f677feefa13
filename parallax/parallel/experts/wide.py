"""The dtype in which many terms are summed."""

import jax.numpy as jnp


def wide(dtype) -> jnp.dtype:
    """float32, or float64 for float64."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
