"""The quantization of activations to int8 with one scale per token (W8A8)."""

import jax
import jax.numpy as jnp
from jax import lax


def int8_step(x: jax.Array, summed: tuple[int, ...], axes: tuple[str, ...] = ()) -> jax.Array:
    """Return the quantization step of every row of activations.

    Args:
      x: activations, floating point.
      summed: dims that the product sums over; they make up a row.
      axes: mesh axes that split the summed dims: a row's largest magnitude is that over all shards.

    Returns:
      x's dims, 1 where summed, float32 (float64 for float64 x): a row's largest magnitude becomes
      127. The backward pass treats the step as a constant.

    Cost: with `axes` an all-reduce of one number per row (its maximum).
    """
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    largest = lax.stop_gradient(jnp.abs(x).max(summed, keepdims=True).astype(wide))
    if axes:
        largest = lax.pmax(largest, axes)
    return jnp.where(largest > 0, largest / 127, jnp.ones_like(largest))


def int8_rounded(x: jax.Array, step: jax.Array) -> jax.Array:
    """Return x rounded to integers from -127 to 127, in the dtype of `step`."""
    return jnp.round(x.astype(step.dtype) / step)
