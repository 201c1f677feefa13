"""Small integers side by side in bytes, along one dim.

Of 8 / width numbers, or the least that fill whole bytes, the first has the lowest bits. A piece of
the dim that begins and ends at whole bytes unpacks on its own: a shard needs nothing of the others.
"""

import math

import jax
import jax.numpy as jnp


def pack(x: jax.Array, width: int, axis: int) -> jax.Array:
    """Numbers 0 to 2**width - 1, packed.

    Args:
      x: [..., n, ...] unsigned integers; n * width is a multiple of 8.
      width: bits of each, 1 to 8.
      axis: of n.

    Returns:
      [..., n * width / 8, ...] uint8.
    """
    return _regroup(x, width, 8, axis)


def unpack(packed: jax.Array, width: int, axis: int) -> jax.Array:
    """Inverse of `pack`: [..., bytes * 8 / width, ...] uint8."""
    return _regroup(packed, 8, width, axis)


def _regroup(x: jax.Array, old: int, new: int, axis: int) -> jax.Array:
    """Numbers of `old` bits as numbers of `new` bits with the same bits in the same order."""
    x = jnp.moveaxis(x, axis, -1).astype(jnp.uint8)
    part = math.gcd(old, new)  # bits that stay together
    parts = (x[..., None] >> _shifts(old, part, x.ndim)) & jnp.uint8(2**part - 1)
    parts = parts.reshape(*x.shape[:-1], -1, new // part)
    found = (parts << _shifts(new, part, x.ndim)).sum(-1, dtype=jnp.uint8)
    return jnp.moveaxis(found, -1, axis)


def _shifts(width: int, part: int, dims: int) -> jax.Array:
    return jnp.arange(0, width, part, dtype=jnp.uint8).reshape((1,) * dims + (-1,))
