"""The Mosaic kernel for Hopper: a block streams a part of the slots of one (sequence, key head).

One producer warpgroup loads and one consumer warpgroup multiplies. Chunks go through one ring: for
each tile, those of its keys along head_dim, then those of its values. Scores and sums are
transposed (`tiles`); maxima are in units of log2 (the score times scale times log2(e)), so that
each exponential is one exp2. No GPU has run it yet: it is checked in interpret mode, and compiled
to machine code for the H100.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.chip import ROWS
from parallax.kernels.decode_attention import tiles
from parallax.kernels.decode_attention.reference import finite
from parallax.kernels.hopper import i32

LOG2_E = math.log2(math.e)
# Layouts of wgmma's results, [keys or columns of the values, queries], and of a number per query.
SUMS = plgpu.Layout.WGMMA
QUERY = plgpu.Layout.WGMMA.reduce(0)
GRID = ("groups", "splits", "kv_heads", "batch")
PRODUCER = 1


def attend(
    q, k, v, spans, rows=None, *, scale: float, window: int | None = None, splits: int | None = None
):
    """Compute `api.decode_attention` by the kernel; return (o, m, l).

    Args:
      spans: [B, S, 2] int32. rows: [B], rows of k and v; None: each sequence has its own.
      window: the most slots that count; None: all.
      splits: parts of a sequence's slots; None takes the default (`tiles.splits`).

    Cost: 4 B H M K FLOPs, with the query heads per key head padded to eights, declared to XLA with
      the bytes of q, of all slots, or of a window (lengths are traced), and of the partial sums of
      all splits, which XLA then adds.
    """
    batch, heads, width = q.shape
    kv_heads, slots = k.shape[1:3]
    heads_per_kv = heads // kv_heads
    tile = tiles.tile_of(width, heads_per_kv)
    most = slots if window is None else min(window, slots)
    if splits is None:
        splits = tiles.splits(batch * kv_heads * tile.groups, most, tile)
    queries = tile.groups * tile.queries
    q = hopper.pad(q.reshape(batch, kv_heads, heads_per_kv, width), 2, queries)
    rows = jnp.arange(batch, dtype=jnp.int32) if rows is None else jnp.asarray(rows, jnp.int32)
    spans = jnp.clip(jnp.asarray(spans, jnp.int32), 0, slots).reshape(batch, -1)

    sums = (batch, kv_heads, tile.groups, splits, tile.queries)
    o_shape = (*sums[:-1], width, tile.queries)
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (o_shape, sums, sums)]
    cache_bytes = 2 * tile.groups * batch * kv_heads * most * width * q.dtype.itemsize
    o, m, l = hopper.call(
        "decode_attention",
        functools.partial(kernel, tile=tile, scale=scale, splits=splits),
        (q, k, v, jnp.concatenate([rows[:, None], spans], axis=1)),
        results,
        grid=dict(zip(GRID, (tile.groups, splits, kv_heads, batch), strict=True)),
        flops=4.0 * batch * kv_heads * queries * most * width,
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


def kernel(q, k, v, table, o, m, l, *, tile: tiles.Tile, scale: float, splits: int):
    """The body of one thread block; arguments are arrays in device memory.

    Args:
      q: [B, G, groups x queries, K]. k, v: [N, G, M, K].
      table: [B, 1 + 2 S] int32, per sequence its row of k and v, and its spans.
      o: [B, G, groups, splits, K, queries]. m, l: [B, G, groups, splits, queries].
    """
    n, split, g, b = (lax.axis_index(axis) for axis in GRID)
    kv_row = table[b, 0]
    spans, total = spans_of(table, b, tile.keys)
    first, end = (lax.div((split + i) * total, i32(splits)) for i in (0, 1))
    steps = end - first
    columns = [pl.ds(c * tile.columns, tile.columns) for c in range(tile.chunks)]

    def scope(q_mem, p_mem, q_full, ring: hopper.Ring):
        def load():
            @pl.loop(0, steps)
            def _(j):
                row, _, _ = place(spans, first + j, tile.keys)
                chunk = 2 * tile.chunks * j
                for source in (k, v):
                    for part in columns:
                        block = source.at[kv_row, g, pl.ds(row, tile.keys), part]
                        ring.fill(chunk, functools.partial(plgpu.copy_gmem_to_smem, block))
                        chunk += 1

            ring.drain(2 * tile.chunks * steps)

        def step(j, state):
            acc, m, l = state
            chunk = 2 * tile.chunks * j

            def keys_by_queries(sums):
                for c, part in enumerate(columns):
                    keys = ring.wait(chunk + c)
                    hopper.wgmma(sums, keys, q_mem.at[:, part].transpose((1, 0)))
                    plgpu.wgmma_wait(0)
                    ring.free(chunk + c)

            scores = hopper.product((tile.keys, tile.queries), keys_by_queries)

            row, start, end = place(spans, first + j, tile.keys)
            slots = plgpu.broadcasted_iota(jnp.int32, scores.shape, 0, layout=SUMS) + row
            counts = (slots >= start) & (slots < end)
            scores = jnp.where(counts, scores * (scale * LOG2_E), -jnp.inf)
            old_m, m = m, jnp.maximum(m, scores.max(axis=0))
            base = jnp.where(m == -jnp.inf, 0.0, m)
            p = jnp.exp2(scores - along(base, scores.shape))
            shrink = jnp.exp2(old_m - base)
            l = l * along(shrink, l.shape)
            for i in range(0, tile.keys, ROWS):
                l += p[i : i + ROWS]
            weights = p_mem.transpose((1, 0))
            weights[...] = p.astype(q.dtype)
            plgpu.commit_smem()

            new_acc = []
            for c, old in enumerate(acc, tile.chunks):
                values = ring.wait(chunk + c).transpose((1, 0))
                new = hopper.product(old.shape, lambda out, x=values: hopper.wgmma(out, x, weights))
                ring.free(chunk + c)
                new_acc.append(old * along(shrink, old.shape) + new)
            return tuple(new_acc), m, l

        def compute():
            @pl.when(steps > 0)
            def _():
                rows = pl.ds(n * tile.queries, tile.queries)
                plgpu.copy_gmem_to_smem(q.at[b, g, rows], q_mem, q_full)
                plgpu.barrier_wait(q_full)

            # l holds sums over every 64th key: the rest of the sum is taken once, at the end.
            acc = (full((tile.columns, tile.queries), 0, SUMS),) * tile.chunks
            start = acc, full((tile.queries,), -jnp.inf, QUERY), full((ROWS, tile.queries), 0, SUMS)
            acc, largest, sums = lax.fori_loop(0, steps, step, start)
            index = (b, g, n, split)
            hopper.store(m.at[index], largest * (1 / LOG2_E))
            hopper.store(l.at[index], sums.sum(axis=0))
            for part, x in zip(columns, acc, strict=True):
                hopper.store(o.at[(*index, part, slice(None))], x)

        warpgroup = lax.axis_index("warpgroup")
        pl.when(warpgroup == PRODUCER)(load)
        pl.when(warpgroup != PRODUCER)(compute)

    stages = tile.stages
    pl.run_scoped(
        scope,
        hopper.swizzled((tile.queries, tile.head_dim), q.dtype),
        hopper.swizzled((tile.queries, tile.keys), q.dtype),
        plgpu.Barrier(),
        hopper.ring(
            hopper.swizzled((stages, tile.keys, tile.columns), q.dtype), stages, consumers=1
        ),
        collective_axes="warpgroup",
    )


def spans_of(table, sequence, keys: int) -> tuple[list[tuple[jax.Array, ...]], jax.Array]:
    """Return a sequence's spans, and the number of their tiles.

    Tiles start at multiples of 8 slots, as copies must: a span may begin inside its first tile.

    Returns:
      For each span the tiles before it, the first slot of its first tile, its start and its end.
    """
    spans, total = [], i32(0)
    for s in range(1, table.shape[1], 2):
        start, end = table[sequence, s], table[sequence, s + 1]
        row = lax.div(start, i32(8)) * 8
        spans.append((total, row, start, end))
        own = lax.div(end - row + (keys - 1), i32(keys))
        total = total + jnp.where(start < end, own, 0)
    return spans, total


def place(spans, tile, keys: int) -> tuple[jax.Array, ...]:
    """Return a tile's first slot, and the first and the end of its span's slots that count."""

    def within(span):
        before, row, start, end = span
        return row + (tile - before) * keys, start, end

    found = within(spans[0])
    for span in spans[1:]:
        # An empty span has the same number of tiles before it as the next, which replaces it.
        found = (jnp.where(tile >= span[0], *x) for x in zip(within(span), found, strict=True))
    return tuple(found)


def full(shape, value, layout) -> jax.Array:
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def along(queries: jax.Array, shape) -> jax.Array:
    """Broadcast a value per query to all rows of a shape."""
    return lax.broadcast_in_dim(queries, shape, [1])
