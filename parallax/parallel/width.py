"""The all-gather of a row's shards and the selection of a local shard, each other's gradient.

A row that is the same on all devices of `axes` has one gradient, and the gradient of a local shard
is a piece of it: an all-gather assembles it. JAX's own rule for a slice would sum padded rows and
send twice the bytes.
"""

import functools

import jax
from jax import lax

Axes = tuple[str, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_width(x: jax.Array, axes: Axes) -> jax.Array:
    """All-gather local shards [..., D / n] over `axes` to rows [..., D] on all of their devices."""
    return lax.all_gather(x, axes, axis=x.ndim - 1, tiled=True, to="invarying")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def shard_width(x: jax.Array, axes: Axes) -> jax.Array:
    """Return this device's local shard [..., D / n] of rows [..., D] replicated over `axes`."""
    width = x.shape[-1] // lax.axis_size(axes)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * width, width, axis=x.ndim - 1)


gather_width.defvjp(
    lambda x, axes: (gather_width(x, axes), None), lambda axes, _, dy: (shard_width(dy, axes),)
)
shard_width.defvjp(
    lambda x, axes: (shard_width(x, axes), None), lambda axes, _, dy: (gather_width(dy, axes),)
)
