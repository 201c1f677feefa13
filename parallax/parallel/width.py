"""Whole rows and this device's share of them: two maps, each with the other as its gradient.

A row that is the same on all devices of `axes` has one gradient, of which a share's gradient is a
piece: an all-gather puts it together. JAX's own rule for a slice sums padded rows, twice the bytes.
"""

import functools

import jax
from jax import lax

Axes = tuple[str, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def widen(x: jax.Array, axes: Axes) -> jax.Array:
    """[..., D / n] that differs over `axes` -> [..., D], the same on all of their devices."""
    return lax.all_gather(x, axes, axis=x.ndim - 1, tiled=True, to="invarying")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def narrow(x: jax.Array, axes: Axes) -> jax.Array:
    """[..., D], the same on all devices of `axes` -> [..., D / n], this device's share."""
    width = x.shape[-1] // lax.axis_size(axes)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * width, width, axis=x.ndim - 1)


widen.defvjp(lambda x, axes: (widen(x, axes), None), lambda axes, _, dy: (narrow(dy, axes),))
narrow.defvjp(lambda x, axes: (narrow(x, axes), None), lambda axes, _, dy: (widen(dy, axes),))
