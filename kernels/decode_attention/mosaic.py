"""The call of the Mosaic GPU kernel for Hopper, and the sum over its splits.

Each thread block streams a part of the slots that count of one (sequence, key head): one producer
warpgroup loads, one consumer warpgroup multiplies. No GPU has run it yet: it is checked in
interpret mode, and compiled to machine code for the H100.
"""

import functools

import jax
import jax.numpy as jnp

from parallax.kernels import hopper
from parallax.kernels.decode_attention import tiles
from parallax.kernels.decode_attention.mosaic_kernel import Problem, kernel
from parallax.kernels.decode_attention.reference import finite


def attend(q, k, v, spans, rows=None, *, scale: float, splits: int | None = None):
    """Compute `api.decode_attention` by the kernel; return (o, m, l).

    Args:
      spans: [B, S, 2] int32. rows: [B], rows of k and v; None: each sequence has its own.
      splits: parts of a sequence's slots; None takes the default (`tiles.splits`).

    Cost: 4 B H M K FLOPs, with the query heads per key head padded to eights, declared to XLA with
      the bytes of q, of all slots (lengths are traced) and of the partial sums of all splits, which
      XLA then adds.
    """
    batch, heads, width = q.shape
    kv_heads, slots = k.shape[1:3]
    heads_per_kv = heads // kv_heads
    tile = tiles.tile_of(width, heads_per_kv)
    if splits is None:
        splits = tiles.splits(batch * kv_heads * tile.groups, slots, tile)
    queries = tile.groups * tile.queries
    q = hopper.pad(q.reshape(batch, kv_heads, heads_per_kv, width), 2, queries)
    rows = jnp.arange(batch, dtype=jnp.int32) if rows is None else jnp.asarray(rows, jnp.int32)
    spans = jnp.clip(jnp.asarray(spans, jnp.int32), 0, slots).reshape(batch, -1)

    sums = (batch, kv_heads, tile.groups, splits, tile.queries)
    o_shape = (*sums[:-1], width, tile.queries)
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (o_shape, sums, sums)]
    cache_bytes = tile.groups * batch * hopper.bytes_of(k[:1], v[:1])
    o, m, l = hopper.call(
        "decode_attention",
        functools.partial(kernel, problem=Problem(tile, scale, splits, q.dtype)),
        (q, k, v, jnp.concatenate([rows[:, None], spans], axis=1)),
        results,
        grid={"groups": tile.groups, "splits": splits, "kv_heads": kv_heads, "batch": batch},
        flops=4.0 * batch * kv_heads * queries * slots * width,
        bytes_accessed=cache_bytes + hopper.bytes_of(q, *results),
        num_threads=2,
    )

    largest = m.max(3)
    if splits > 1:
        weights = jnp.exp(m - finite(largest)[:, :, :, None])
        o, l = o * weights[..., None, :], l * weights
    o, l = jnp.swapaxes(o.sum(3), 3, 4), l.sum(3)

    def by_head(x):
        x = x.reshape(batch, kv_heads, queries, *x.shape[4:])[:, :, :heads_per_kv]
        return x.reshape(batch, heads, 1, *x.shape[3:])

    return by_head(o), by_head(largest), by_head(l)
