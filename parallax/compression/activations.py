"""Activations as int8 with a scale a token (W8A8): the largest magnitude is 127."""

import jax
import jax.numpy as jnp
from jax import lax


def int8_step(x: jax.Array, summed: tuple[int, ...], axes: tuple[str, ...] = ()) -> jax.Array:
    """What one integer stands for, of every row of activations.

    Args:
      x: floating point.
      summed: dims that the product sums over; a row is all of them.
      axes: mesh axes that split what is summed: a row's largest magnitude is one over all of them.

    Returns:
      x's dims, 1 where summed, float32 (float64 for float64 x). Rounding has no slope: the backward
      pass takes it as given.

    Cost: with `axes` an all-reduce of one number a row (its maximum).
    """
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    largest = lax.stop_gradient(jnp.abs(x).max(summed, keepdims=True).astype(wide))
    if axes:
        largest = lax.pmax(largest, axes)
    return jnp.where(largest > 0, largest / 127, jnp.ones_like(largest))


def int8_rounded(x: jax.Array, step: jax.Array) -> jax.Array:
    """Integers from -127 to 127, in the dtype of `step`."""
    return jnp.round(x.astype(step.dtype) / step)
