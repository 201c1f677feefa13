"""The body of the kernel: one thread block, one part of the slots of a (sequence, key head).

Tiles of keys and of values go through one circular buffer of chunks: for each tile, the chunks of
its keys along head_dim, then those of its values. Maxima are in units of log2 (the score times
scale times log2(e)), so that each exponential is one exp2. Scores and sums are transposed
(`tiles`).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.chip import ROWS
from parallax.kernels.decode_attention.mosaic_spans import place, spans_of
from parallax.kernels.decode_attention.tiles import Tile
from parallax.kernels.hopper import i32

LOG2_E = math.log2(math.e)
# Layouts of wgmma's results, [keys or columns of the values, queries], and of a number per query.
SUMS = plgpu.Layout.WGMMA
QUERY = plgpu.Layout.WGMMA.reduce(0)
PRODUCER = 1


class Problem(NamedTuple):
    """The static parameters of a kernel, all known when it is traced."""

    tile: Tile
    scale: float
    splits: int
    dtype: Any


class State(NamedTuple):
    """Attention so far: per column chunk acc [columns, queries]; m [queries], l [64, queries].

    l holds sums over every 64th key: the rest of the sum is taken once, at the end.
    """

    acc: tuple[jax.Array, ...]
    m: jax.Array
    l: jax.Array


def full(shape, value, layout) -> jax.Array:
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def along(queries: jax.Array, shape) -> jax.Array:
    """Broadcast a value per query to all rows of a shape."""
    return lax.broadcast_in_dim(queries, shape, [1])


def multiply(rows: int, queries: int, body) -> jax.Array:
    """Run `body` on an accumulator and return it, once complete: [rows, queries] float32."""

    def run(out):
        body(out)
        return out[...]

    return pl.run_scoped(run, plgpu.WGMMAAccumulatorRef((rows, queries), jnp.float32))


def online_softmax(state: State, scores: jax.Array, counts: jax.Array, scale: float):
    """Update the online softmax; return m, l, the factor of earlier sums, and the weights p."""
    scores = jnp.where(counts, scores * (scale * LOG2_E), -jnp.inf)
    m = jnp.maximum(state.m, scores.max(axis=0))
    base = jnp.where(m == -jnp.inf, 0.0, m)
    p = jnp.exp2(scores - along(base, scores.shape))
    shrink = jnp.exp2(state.m - base)
    l = state.l * along(shrink, state.l.shape)
    for first in range(0, p.shape[0], ROWS):
        l += p[first : first + ROWS]
    return m, l, shrink, p


def write(ref, value: jax.Array) -> None:
    """Write to device memory straight from registers: a few KB at a block's end."""
    if hasattr(plgpu, "store"):
        plgpu.store(ref, value, optimized=False)
    else:  # JAX 0.11
        ref[...] = value


def kernel(q, k, v, numbers, o, m, l, *, problem: Problem):
    """The body of one thread block; arguments are arrays in device memory."""
    tile = problem.tile
    stages, chunks, keys = tile.stages, tile.chunks, tile.keys
    n, split, g, b = (lax.axis_index(x) for x in ("groups", "splits", "kv_heads", "batch"))
    spans, total = spans_of(numbers, b, keys)
    kv_row = numbers[b, 0]
    # All splits of a sequence have the same number of tiles, whatever its length.
    first = lax.div(total * split, i32(problem.splits))
    steps = lax.div(total * (split + 1), i32(problem.splits)) - first
    items = steps * (2 * chunks)

    def columns(c: int):
        return pl.ds(c * tile.columns, tile.columns)

    def scope(q_mem, kv_mem, p_mem, q_full, kv_full, kv_empty):
        def load():
            @pl.loop(0, steps)
            def _(j):
                row = place(spans, first + j, keys)[0]
                for i, source in enumerate((k, v)):
                    for c in range(chunks):
                        item = (2 * j + i) * chunks + c
                        stage = lax.rem(item, i32(stages))
                        pl.when(item >= stages)(
                            functools.partial(plgpu.barrier_wait, kv_empty.at[stage])
                        )
                        block = source.at[kv_row, g, pl.ds(row, keys), columns(c)]
                        plgpu.copy_gmem_to_smem(block, kv_mem.at[stage], kv_full.at[stage])

            # Every arrival is waited for; the interpreter of JAX 0.11 requires it.
            @pl.loop(jnp.maximum(items - stages, 0), items)
            def _(item):
                plgpu.barrier_wait(kv_empty.at[lax.rem(item, i32(stages))])

        def wait_full(item):
            """Wait for an item to arrive and return its pipeline stage."""
            stage = lax.rem(item, i32(stages))
            plgpu.barrier_wait(kv_full.at[stage])
            return stage

        def scores_of(j):
            def body(out):
                for c in range(chunks):
                    stage = wait_full(2 * j * chunks + c)
                    plgpu.wgmma(out, kv_mem.at[stage], q_mem.at[:, columns(c)].transpose((1, 0)))
                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(kv_empty.at[stage])

            return multiply(keys, tile.queries, body)

        def values_of(j, c: int):
            stage = wait_full((2 * j + 1) * chunks + c)

            def body(out):
                plgpu.wgmma(out, kv_mem.at[stage].transpose((1, 0)), p_mem.transpose((1, 0)))

            sums = multiply(tile.columns, tile.queries, body)
            plgpu.barrier_arrive(kv_empty.at[stage])
            return sums

        def step(j, state):
            scores = scores_of(j)
            row, start, end = place(spans, first + j, keys)
            slots = plgpu.broadcasted_iota(jnp.int32, scores.shape, 0, layout=SUMS) + row
            counts = (slots >= start) & (slots < end)
            m, l, shrink, p = online_softmax(state, scores, counts, problem.scale)
            p_mem.transpose((1, 0))[...] = p.astype(problem.dtype)
            plgpu.commit_smem()
            acc = []
            for c, old in enumerate(state.acc):
                sums = values_of(j, c)
                acc.append(old * along(shrink, old.shape) + sums)
            return State(tuple(acc), m, l)

        def compute():
            @pl.when(steps > 0)
            def _():
                rows = pl.ds(n * tile.queries, tile.queries)
                plgpu.copy_gmem_to_smem(q.at[b, g, rows], q_mem, q_full)
                plgpu.barrier_wait(q_full)

            zeros = full((tile.columns, tile.queries), 0, SUMS)
            state = State(
                (zeros,) * chunks,
                full((tile.queries,), -jnp.inf, QUERY),
                full((ROWS, tile.queries), 0, SUMS),
            )
            state = lax.fori_loop(0, steps, step, state)
            index = (b, g, n, split)
            write(m.at[index], state.m * (1 / LOG2_E))
            write(l.at[index], state.l.sum(axis=0))
            for c, acc in enumerate(state.acc):
                write(o.at[(*index, columns(c), slice(None))], acc)

        warpgroup = lax.axis_index("warpgroup")
        pl.when(warpgroup == PRODUCER)(load)
        pl.when(warpgroup != PRODUCER)(compute)

    def inputs(*shape: int):
        return plgpu.SMEM(shape, problem.dtype, transforms=hopper.transforms(problem.dtype))

    pl.run_scoped(
        scope,
        inputs(tile.queries, tile.head_dim),
        inputs(stages, keys, tile.columns),
        inputs(tile.queries, keys),
        plgpu.Barrier(),
        plgpu.Barrier(num_barriers=stages),
        plgpu.Barrier(num_barriers=stages),
        collective_axes="warpgroup",
    )
