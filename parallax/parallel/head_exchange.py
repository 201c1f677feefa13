"""Trading another dim of queries, keys and values for heads: one all-to-all each, and one back.

Shapes: B batch, L tokens, H query heads, G key/value heads, K head_dim, P devices of the mesh axis.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

HEADS = 2  # the dim of heads in [B, L, H, K]


def kv_heads_read(heads: int, kv_heads: int, parts: int) -> np.ndarray:
    """Which key/value heads each part of the query heads reads, [parts, G'].

    Query heads are cut into equal parts; within a part the same number of query heads in a row
    read each of the G' entries, so an entry is repeated where parts straddle a group.
    """
    local, group = heads // parts, heads // kv_heads
    run = math.gcd(local, group)
    first = np.arange(parts)[:, None] * local + np.arange(0, local, run)[None]
    return first // group


def spread(k: jax.Array, table: np.ndarray) -> jax.Array:
    """[B, L, G, K] with the heads of every row of `table` beside each other, [B, L, P G', K]."""
    flat = table.reshape(-1)
    return k if np.array_equal(flat, np.arange(k.shape[HEADS])) else jnp.take(k, flat, axis=HEADS)


def to_heads(x: jax.Array, axis: str, joined: int) -> jax.Array:
    """Each device's P-th of the heads, with dim `joined` whole over the mesh axis.

    Args:
      x: [B, L, P h, K], heads for the first device first.
      joined: 1 (tokens) or 3 (head_dim), of which every device has a piece.

    Cost: an all-to-all of x.
    """
    return lax.all_to_all(x, axis, split_axis=HEADS, concat_axis=joined, tiled=True)


def from_heads(x: jax.Array, axis: str, joined: int) -> jax.Array:
    """Inverse of `to_heads`."""
    return lax.all_to_all(x, axis, split_axis=joined, concat_axis=HEADS, tiled=True)


def shard_queries(q: jax.Array, parts: int, shards: int) -> jax.Array:
    """[B, L, H, K] -> [B, L / shards, parts shards H / parts, K]: part and shard as heads."""
    b, length, heads, width = q.shape
    q = q.reshape(b, shards, length // shards, parts, heads // parts, width)
    return jnp.moveaxis(q, 1, 3).reshape(b, length // shards, shards * heads, width)


def join_shards(q: jax.Array, parts: int, shards: int) -> jax.Array:
    """Inverse of `shard_queries`."""
    b, length, heads, width = q.shape
    q = q.reshape(b, length, parts, shards, heads // parts // shards, width)
    return jnp.moveaxis(q, 3, 1).reshape(b, shards * length, heads // shards, width)
