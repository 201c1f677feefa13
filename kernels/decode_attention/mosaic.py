"""The operation as a Mosaic GPU kernel for Hopper: the call, and the sum over its splits.

Each block of threads streams a part of the slots that count of one (sequence, key head): one
warpgroup loads, one multiplies. No GPU has run it yet: it is checked in interpret mode, and compiled
to machine code for the H100.
"""

import functools

import jax
import jax.numpy as jnp

from parallax.kernels import hopper
from parallax.kernels.decode_attention import tiles
from parallax.kernels.decode_attention.mosaic_kernel import Problem, kernel
from parallax.kernels.decode_attention.reference import finite


def attend(q, k, v, spans, *, scale: float, splits: int | None = None):
    """See `api.decode_attention`. Returns (o, m, l).

    Args:
      spans: [B, S, 2] int32.
      splits: parts of a sequence's slots; None takes what ships (`tiles.splits`).

    Cost: 4 B H M K FLOPs with H in eights a key head, declared to XLA with the bytes of q, all slots
      (lengths are traced) and the partial sums of all splits, which XLA then adds up.
    """
    batch, heads, width = q.shape
    kv_heads, slots = k.shape[1:3]
    heads_per_kv = heads // kv_heads
    tile = tiles.tile_of(width, heads_per_kv)
    if splits is None:
        splits = tiles.splits(batch * kv_heads * tile.groups, slots, tile)
    rows = tile.groups * tile.queries
    q = hopper.pad(q.reshape(batch, kv_heads, heads_per_kv, width), 2, rows)
    spans = jnp.clip(jnp.asarray(spans, jnp.int32), 0, slots)

    sums = (batch, kv_heads, tile.groups, splits, tile.queries)
    o_shape = (*sums[:-1], width, tile.queries)
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (o_shape, sums, sums)]
    cache_bytes = tile.groups * hopper.bytes_of(k, v)
    o, m, l = hopper.call(
        "decode_attention",
        functools.partial(kernel, problem=Problem(tile, scale, splits, spans.shape[1], q.dtype)),
        (q, k, v, spans.reshape(batch, -1)),
        results,
        grid={"groups": tile.groups, "splits": splits, "kv_heads": kv_heads, "batch": batch},
        flops=4.0 * batch * kv_heads * rows * slots * width,
        bytes_accessed=cache_bytes + hopper.bytes_of(q, *results),
        num_threads=2,
    )

    largest = m.max(3)
    weights = jnp.exp(m - finite(largest)[:, :, :, None])
    o = jnp.swapaxes((o * weights[..., None, :]).sum(3), 3, 4)
    l = (l * weights).sum(3)

    def by_head(x):
        x = x.reshape(batch, kv_heads, rows, *x.shape[4:])[:, :, :heads_per_kv]
        return x.reshape(batch, heads, 1, *x.shape[3:])

    return by_head(o), by_head(largest), by_head(l)
