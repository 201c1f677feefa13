"""The all-to-alls that exchange another dim of queries, keys and values for heads, and back.

Shapes: B batch, L tokens, H query heads, G key/value heads, K head_dim, P devices on the mesh axis.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TOKENS, HEADS, WIDTH = 1, 2, 3  # dims of [B, L, H, K]


def kv_heads_read(heads: int, kv_heads: int, parts: int) -> np.ndarray:
    """Return the key/value heads that each part of the query heads reads, [parts, G'].

    Query heads are cut into equal parts. In a part, equally many consecutive query heads read each
    of the G' entries, so an entry is repeated if parts straddle a group.
    """
    local, group = heads // parts, heads // kv_heads
    run = math.gcd(local, group)
    first = np.arange(parts)[:, None] * local + np.arange(0, local, run)[None]
    return first // group


def spread(k: jax.Array, table: np.ndarray) -> jax.Array:
    """Repeat the heads of [B, L, G, K] in the order of `table`'s rows, [B, L, P G', K]."""
    flat = table.reshape(-1)
    return k if np.array_equal(flat, np.arange(k.shape[HEADS])) else jnp.take(k, flat, axis=HEADS)


def heads_of(x: jax.Array | None, part: jax.Array, parts: int) -> jax.Array | None:
    """Return one of equal parts of a value per query head, [H] -> [H / parts]; None stays None."""
    if x is None or parts == 1:
        return x
    each = x.shape[0] // parts
    return lax.dynamic_slice_in_dim(x, part * each, each)


def to_heads(x: jax.Array, axis: str, joined: int) -> jax.Array:
    """Give each device a P-th of the heads, with dim `joined` whole over the mesh axis.

    Args:
      x: [B, L, P h, K], the first device's heads first.
      axis: the mesh axis.
      joined: TOKENS or WIDTH, the dim of which every device has a piece.

    Cost: an all-to-all of x.
    """
    return lax.all_to_all(x, axis, split_axis=HEADS, concat_axis=joined, tiled=True)


def from_heads(x: jax.Array, axis: str, joined: int) -> jax.Array:
    """Return x to the sharding before `to_heads`."""
    return lax.all_to_all(x, axis, split_axis=joined, concat_axis=HEADS, tiled=True)


@dataclass(frozen=True)
class SliceExchange:
    """The division of H heads over m devices with slices of them: head parts times query shards.

    Attributes:
      parts: parts of the query heads; device i takes part i // shards.
      shards: shards of the queries, if there are too few heads; device i takes shard i % shards.
      table: [m, G'], the key/value heads that each device reads.
    """

    parts: int
    shards: int
    table: np.ndarray

    @classmethod
    def of(cls, heads: int, kv_heads: int, devices: int) -> "SliceExchange":
        """Return the exchange with the most parts that divide both heads and devices."""
        parts = math.gcd(heads, devices)
        shards = devices // parts
        return cls(parts, shards, kv_heads_read(heads, kv_heads, parts).repeat(shards, axis=0))

    def enter(self, q: jax.Array, k: jax.Array, v: jax.Array, axis: str) -> tuple[jax.Array, ...]:
        """Exchange slices of all heads and tokens for whole heads.

        Args:
          q: [B, L, H, K / m].
          k, v: [B, L, G, K / m].

        Returns:
          q [B, L / shards, H / parts, K], k and v [B, L, G', K].
        """
        b, length, heads, width = q.shape
        # The all-to-all treats the shard of a device's queries as one more part of the heads.
        q = q.reshape(b, self.shards, length // self.shards, self.parts, -1, width)
        q = jnp.moveaxis(q, 1, 3).reshape(b, length // self.shards, self.shards * heads, width)
        return tuple(
            to_heads(x, axis, WIDTH) for x in (q, spread(k, self.table), spread(v, self.table))
        )

    def leave(self, out: jax.Array, axis: str) -> jax.Array:
        """Exchange whole heads [B, L / shards, H / parts, K] for slices [B, L, H, K / m]."""
        out = from_heads(out, axis, WIDTH)
        b, length, _, width = out.shape
        out = out.reshape(b, length, self.parts, self.shards, -1, width)
        return jnp.moveaxis(out, 3, 1).reshape(b, self.shards * length, -1, width)
