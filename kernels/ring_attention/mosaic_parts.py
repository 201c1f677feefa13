"""Operations of both Mosaic kernels on a block of scores: the mask and online softmax.

Arrays are register tiles of one warpgroup, in the layout of wgmma's results. Maxima are in units of
log2 (the score times scale times log2(e)), so that each exponential is one exp2.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels.chip import ROWS
from parallax.kernels.hopper import i32
from parallax.kernels.ring_attention.tiles import Tile

LOG2_E = math.log2(math.e)
SCORES = plgpu.Layout.WGMMA
ROW = plgpu.Layout.WGMMA.reduce(1)
# The old output is prefetched to L2 this many blocks before the end.
NEAR = 4


class Problem(NamedTuple):
    """The static parameters of a kernel, all known when it is traced."""

    is_causal: bool
    scale: float
    heads_per_kv: int
    width: int
    dtype: Any


class State(NamedTuple):
    """The attention of one warpgroup's rows so far: [64, columns], [64] and [64] float32."""

    acc: jax.Array
    m: jax.Array
    l: jax.Array


class BlockWork(NamedTuple):
    """The work of one thread block.

    Attributes:
      batch, head: sequence and head of the queries. kv_head: head of the keys and values.
      first_row: first query.
      limit: keys from this index on do not count.
      steps: blocks of keys that some row of its cluster sees; at least one, so that every barrier
        has a copy to wait for.
    """

    batch: jax.Array
    head: jax.Array
    kv_head: jax.Array
    first_row: jax.Array
    limit: jax.Array
    steps: jax.Array


def block_work(problem: Problem, tile: Tile, limit) -> BlockWork:
    """Return this block's work, from the grid's axes "batch", "heads" and "rows" (the fastest)."""
    block, head = lax.axis_index("rows"), lax.axis_index("heads")
    if problem.is_causal:  # the rows with the most work first
        block = lax.axis_size("rows") - 1 - block
    first_row = block * tile.cluster_queries
    seen = jnp.minimum(limit, first_row + tile.cluster_queries) if problem.is_causal else limit
    if tile.cluster > 1:
        first_row += lax.axis_index("cluster") * tile.queries
    return BlockWork(
        lax.axis_index("batch"), head, lax.div(head, i32(problem.heads_per_kv)), first_row, limit,
        jnp.maximum(lax.div(seen + (tile.keys - 1), i32(tile.keys)), 1),
    )  # fmt: skip


def multicast(tile: Tile) -> dict:
    """Return the copy options of keys and values: in a cluster, each block loads a part for all."""
    return {} if tile.cluster == 1 else {"collective_axes": "cluster"}


def fetch_in_order(
    steps, tile: Tile, fetch_keys: Callable, fetch_values: Callable, near_the_end: Callable
) -> None:
    """Fetch all blocks in the order of use: with `ahead`, keys come one block before values."""
    lag = int(tile.ahead)

    @pl.loop(0, steps + lag)
    def _(j):
        pl.when(j == jnp.maximum(steps - NEAR, 0))(near_the_end)
        pl.when(j < steps)(lambda: fetch_keys(j))
        pl.when(j >= lag)(lambda: fetch_values(j - lag))


def free_barriers(tile: Tile, arrivals: int, count: int) -> Any:
    """Return the empty barriers; in a cluster all blocks must arrive, as each writes to all."""
    if tile.cluster == 1:
        return plgpu.Barrier(num_arrivals=arrivals, num_barriers=count)
    return plgpu.ClusterBarrier(
        collective_axes=("cluster",), num_arrivals=arrivals, num_barriers=count
    )


def per_row(rows: jax.Array, shape) -> jax.Array:
    """Broadcast a value per row to all columns of a shape."""
    return lax.broadcast_in_dim(rows, shape, [0])


def mask(scores: jax.Array, problem: Problem, limit, j, first_row) -> jax.Array:
    """Set scores of key block j to -inf where the query does not see the key.

    A branch inside the one loop does it: a second loop for masked blocks costs registers. It works
    on eight columns at a time, since the compiler keeps what does not change with j in registers:
    two columns per thread instead of `keys / 4`.
    """

    keys = scores.shape[1]

    def hide(scores):
        shape = (ROWS, 8)
        # The first key that does not count, relative to the block's first.
        bound = limit - j * keys
        if problem.is_causal:
            rows = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=SCORES)
            bound = jnp.minimum(bound, rows + (first_row - j * keys + 1))
        columns = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=SCORES)
        pieces = [
            jnp.where(columns < bound - x, scores[:, x : x + 8], -jnp.inf)
            for x in range(0, keys, 8)
        ]
        return jnp.concatenate(pieces, axis=1)

    end = (j + 1) * keys
    hides = end > limit
    if problem.is_causal:
        hides |= end > first_row + 1
    return lax.cond(hides, hide, lambda scores: scores, scores)


def finite(m: jax.Array) -> jax.Array:
    """Replace the -inf of a row that has seen no key by 0, to avoid inf - inf."""
    return jnp.where(m == -jnp.inf, 0.0, m)


def online_softmax(m: jax.Array, l: jax.Array, scores: jax.Array, problem: Problem) -> tuple:
    """Update the online softmax; return m, l, float32 weights p, and the factor of older sums."""
    factor = problem.scale * LOG2_E
    m_new = jnp.maximum(m, scores.max(axis=1) * factor)
    base = finite(m_new)
    p = jnp.exp2(scores * factor - per_row(base, scores.shape))
    shrink = jnp.exp2(m - base)
    return m_new, l * shrink + p.sum(axis=1), p, shrink
