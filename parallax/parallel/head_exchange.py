"""Trading another dim of queries, keys and values for heads: one all-to-all each, and one back.

Shapes: B batch, L tokens, H query heads, G key/value heads, K head_dim, P devices of the mesh axis.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TOKENS, HEADS, WIDTH = 1, 2, 3  # dims of [B, L, H, K]


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
      joined: TOKENS or WIDTH, of which every device has a piece.

    Cost: an all-to-all of x.
    """
    return lax.all_to_all(x, axis, split_axis=HEADS, concat_axis=joined, tiled=True)


def from_heads(x: jax.Array, axis: str, joined: int) -> jax.Array:
    """Inverse of `to_heads`."""
    return lax.all_to_all(x, axis, split_axis=joined, concat_axis=HEADS, tiled=True)


@dataclass(frozen=True)
class SliceExchange:
    """How m devices with slices of H heads share them: head parts times query shards.

    Attributes:
      parts: of the query heads; device i takes part i // shards.
      shards: of the queries; device i takes shard i % shards, where heads alone do not suffice.
      table: [m, G'], key/value heads that each device reads.
    """

    parts: int
    shards: int
    table: np.ndarray

    @classmethod
    def of(cls, heads: int, kv_heads: int, devices: int) -> "SliceExchange":
        """As many parts as heads and devices allow alike."""
        parts = math.gcd(heads, devices)
        shards = devices // parts
        return cls(parts, shards, kv_heads_read(heads, kv_heads, parts).repeat(shards, axis=0))

    def enter(self, q: jax.Array, k: jax.Array, v: jax.Array, axis: str) -> tuple[jax.Array, ...]:
        """Slices of all heads and tokens -> whole heads.

        Args:
          q: [B, L, H, K / m].
          k, v: [B, L, G, K / m].

        Returns:
          q [B, L / shards, H / parts, K], k and v [B, L, G', K].
        """
        b, length, heads, width = q.shape
        # To all-to-all, the shard of a device's queries is one more part of the heads.
        q = q.reshape(b, self.shards, length // self.shards, self.parts, -1, width)
        q = jnp.moveaxis(q, 1, 3).reshape(b, length // self.shards, self.shards * heads, width)
        return tuple(
            to_heads(x, axis, WIDTH) for x in (q, spread(k, self.table), spread(v, self.table))
        )

    def leave(self, out: jax.Array, axis: str) -> jax.Array:
        """[B, L / shards, H / parts, K] of whole heads -> [B, L, H, K / m]."""
        out = from_heads(out, axis, WIDTH)
        b, length, _, width = out.shape
        out = out.reshape(b, length, self.parts, self.shards, -1, width)
        return jnp.moveaxis(out, 3, 1).reshape(b, self.shards * length, -1, width)
