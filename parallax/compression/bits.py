"""The packing of small integers into bytes along one dim.

Among the numbers that share a byte (or the fewest whole bytes that hold whole numbers), the first
has the lowest bits. A piece of the dim that begins and ends at whole bytes unpacks on its own, so a
shard needs no other shard.
"""

import math

import jax
import jax.numpy as jnp


def pack(x: jax.Array, width: int, axis: int) -> jax.Array:
    """Pack numbers from 0 to 2**width - 1.

    Args:
      x: [..., n, ...] unsigned integers; n * width is a multiple of 8.
      width: bits per number, 1 to 8.
      axis: the dim of n.

    Returns:
      [..., n * width / 8, ...] uint8.
    """
    return _regroup(x, width, 8, axis)


def unpack(packed: jax.Array, width: int, axis: int) -> jax.Array:
    """Unpack what `pack` returned: [..., bytes * 8 / width, ...] uint8."""
    return _regroup(packed, 8, width, axis)


def _regroup(x: jax.Array, old: int, new: int, axis: int) -> jax.Array:
    """Regroup numbers of `old` bits into numbers of `new` bits, in the same order of bits."""
    x = jnp.moveaxis(x, axis, -1).astype(jnp.uint8)
    part = math.gcd(old, new)  # bits that stay together
    parts = (x[..., None] >> _shifts(old, part, x.ndim)) & jnp.uint8(2**part - 1)
    parts = parts.reshape(*x.shape[:-1], -1, new // part)
    numbers = (parts << _shifts(new, part, x.ndim)).sum(-1, dtype=jnp.uint8)
    return jnp.moveaxis(numbers, -1, axis)


def _shifts(width: int, part: int, dims: int) -> jax.Array:
    return jnp.arange(0, width, part, dtype=jnp.uint8).reshape((1,) * dims + (-1,))
