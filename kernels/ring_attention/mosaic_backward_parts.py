"""What a thread block of the backward kernel works on, and its operations on a block of scores.

Scores are [64 rows of the tile, rows of the block], in the registers of one warpgroup. Rows of the
tile are queries for dq, and keys for dv and dk.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels.chip import ROWS
from parallax.kernels.hopper import CLUSTER, Ring, i32, opaque_zero, wgmma
from parallax.kernels.ring_attention.backward_tiles import Pass
from parallax.kernels.ring_attention.mosaic_parts import LOG2_E, ROW, SCORES, Problem

# The layout of one value per column of a block of scores.
COLUMN = plgpu.Layout.WGMMA.reduce(0)


class Stage(NamedTuple):
    """The memory of a stage of a ring: of block_2, `block` alone.

    Attributes:
      block: [rows, columns], a piece of the block.
      sums: lse and delta of the block's queries, [arrays, rows] float32.
      ids: segment ids of the block's tokens, [rows] int32.
    """

    block: Any
    sums: Any = None
    ids: Any = None


class Work(NamedTuple):
    """The work of one thread block, and the arrays in device memory.

    Attributes:
      tile, blocks: what stays and what streams past, [B, tokens, heads, K].
      sums: lse in units of log2 and, unless dv is alone, delta times the scale, [B, H, L] float32.
      results: gradients by name, [B, tokens, heads, K] float32.
      ids: with segments, those of the tile's and of the blocks' tokens, [B, tokens] int32.
      limit: keys from this index on do not count. offset: position of query 0 minus that of key 0.
      batch, head, row: sequence, head and first row of the tile. part: of the results' columns.
      first_block, blocks_per_head: the blocks that some row of the cluster meets.
      steps: blocks of all heads; at least one, so that every barrier has a copy to wait for.
    """

    problem: Problem
    cut: Pass
    tile: tuple[Any, Any]
    blocks: tuple[Any, Any]
    sums: tuple[Any, ...]
    results: dict[str, Any]
    ids: tuple[Any, ...]
    limit: jax.Array
    offset: Any
    batch: jax.Array
    head: jax.Array
    part: jax.Array
    row: jax.Array
    first_block: Any = 0
    blocks_per_head: Any = 1
    steps: Any = 1

    @property
    def threads_load(self) -> bool:
        """Whether threads, and not wgmma alone, read block_1's stages."""
        return self.cut.by_keys or bool(self.ids)

    def block(self, j) -> tuple[jax.Array, jax.Array]:
        """Return the head and the first row of block j."""
        group = self.problem.heads_per_kv
        if not self.cut.by_keys:
            return lax.div(self.head, i32(group)), (self.first_block + j) * self.cut.block
        number = self.first_block + lax.rem(j, self.blocks_per_head)
        return self.head * group + lax.div(j, self.blocks_per_head), number * self.cut.block

    def met(self, row) -> tuple[Any, Any]:
        """Return the first row of the other side that a row of the tile meets, and the end.

        None: the mask has no such bound. The results of keys that do not count are not 0.
        """
        window = self.problem.window
        hides_later = self.problem.is_causal or window is not None
        if self.cut.by_keys:
            first = row - self.offset
            return first if hides_later else None, None if window is None else first + window
        end = row + (self.offset + 1)
        high = jnp.minimum(self.limit, end) if hides_later else self.limit
        return None if window is None else end - window, high

    def store(self, name: str, row, column, result: jax.Array) -> None:
        at = self.batch, pl.ds(row, ROWS), self.head, pl.ds(column, result.shape[1])
        self.results[name][at] = result


def work_of(arrays: tuple, problem: Problem, cut: Pass) -> Work:
    """Return this thread block's work, from the grid's axes "rows", "heads" and "batch"."""
    q, k, v, d_out, lse, delta, sight, *rest = arrays
    ids, results = rest[: -len(cut.makes)], rest[-len(cut.makes) :]
    tile, blocks = (q, d_out), (k, v)
    if cut.by_keys:
        tile, blocks, ids = blocks, tile, ids[::-1]
    number = lax.axis_index("rows")
    if problem.is_causal and not cut.by_keys:  # the rows with the most work first
        number = lax.axis_size("rows") - 1 - number
    head, part = (f(lax.axis_index("heads"), i32(cut.parts)) for f in (lax.div, lax.rem))
    first = number * cut.cluster_rows
    # A 0 that the compiler knows takes no register.
    offset = 0 if problem.window is None else sight[1]
    work = Work(
        problem, cut, tile, blocks, (lse, delta) if cut.needs_dp else (lse,),
        dict(zip(cut.makes, results, strict=True)),
        tuple(ids), sight[0], offset, lax.axis_index("batch"), head, part, first,
    )  # fmt: skip
    (low, _), (_, high) = work.met(first), work.met(first + (cut.cluster_rows - 1))
    start, end = i32(0), i32(-(-blocks[0].shape[1] // cut.block))
    if low is not None:
        start = lax.div(low, i32(cut.block))
        if problem.window is not None:
            start = jnp.clip(start, 0, end - 1)
    if high is not None:
        end = jnp.minimum(lax.div(high + (cut.block - 1), i32(cut.block)), end)
    count = steps = jnp.maximum(end - start, 1)
    if cut.by_keys:
        steps = jnp.where(first < work.limit, count * problem.heads_per_kv, 1)
    if cut.cluster > 1:
        first += lax.axis_index(CLUSTER) * cut.rows
    return work._replace(row=first, first_block=start, blocks_per_head=count, steps=steps)


def sums_of(work: Work, x: int, row) -> Callable[[Any], jax.Array]:
    """Return a function from a stage to lse (0) or delta (1) of each query of scores."""
    if work.cut.by_keys:
        return lambda stage: plgpu.load(stage.sums.at[x], layout=COLUMN, optimized=False)
    rows = work.sums[x].at[work.batch, work.head, pl.ds(row, ROWS)]
    values = plgpu.load(rows, layout=ROW, optimized=False)
    return lambda stage: values


def ids_of(work: Work, row) -> jax.Array | None:
    """Return the segment ids of 64 rows of the tile; None without segments."""
    if not work.ids:
        return None
    rows = work.ids[0].at[work.batch, pl.ds(row, ROWS)]
    return plgpu.load(rows, layout=ROW, optimized=False)


def hide(scores: jax.Array, work: Work, row, column, ids: jax.Array | None, of_block) -> jax.Array:
    """Set scores of rows from `row`, columns from `column` on to -inf where a query sees no key.

    A branch skips this for blocks that are visible whole, which segments leave none. It works on
    eight columns at a time, since the compiler keeps in registers what is the same for all blocks.

    Args:
      ids, of_block: segment ids of the rows, in registers, and of the columns, in shared memory.
    """
    (low, _), (_, high) = work.met(row + (ROWS - 1)), work.met(row)
    whole = [] if low is None else [column >= low]
    if high is not None:
        whole.append(column + scores.shape[1] <= high)
    if ids is not None:
        whole.append(column + work.limit < 0)  # never: but as a branch it takes fewer registers
    if not whole:
        return scores

    def hidden(scores):
        shape = ROWS, 8
        rows, columns = (
            plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=SCORES) for axis in range(2)
        )
        low, high = work.met(rows + row)

        def piece(x):
            seen = [] if low is None else [columns >= (low - column) - x]
            if high is not None:
                seen.append(columns < (high - column) - x)
            if ids is not None:
                others = plgpu.load(of_block.at[pl.ds(x, 8)], layout=COLUMN, optimized=False)
                both = enumerate((ids, others))
                seen.append(operator.eq(*(lax.broadcast_in_dim(v, shape, [x]) for x, v in both)))
            scores_x = scores[:, x : x + 8]
            for condition in seen:  # one by one: conditions combined take registers of their own
                scores_x = jnp.where(condition, scores_x, -jnp.inf)
            return scores_x

        return jnp.concatenate([piece(x) for x in range(0, scores.shape[1], 8)], axis=1)

    is_whole = functools.reduce(jnp.logical_and, whole)
    return lax.cond(is_whole, lambda scores: scores, hidden, scores)


def weights(scores: jax.Array, lse: jax.Array, work: Work) -> jax.Array:
    """Return P of a block of scores."""
    factor = work.problem.scale * LOG2_E
    return jnp.exp2(scores * factor - _per_query(lse, scores.shape, work.cut))


def gradient(p: jax.Array, dp: jax.Array, delta: jax.Array, work: Work) -> jax.Array:
    """Return dS, the gradient of the unscaled scores. `delta` is scaled already."""
    return p * (dp * work.problem.scale - _per_query(delta, p.shape, work.cut))


def _per_query(values: jax.Array, shape, cut: Pass) -> jax.Array:
    return lax.broadcast_in_dim(values, shape, [1 if cut.by_keys else 0])


def product(
    tile, ring: Ring, j, *, free: bool = False, meanwhile: Callable[[], Any] = lambda: ()
) -> tuple[jax.Array, Any]:
    """Return a tile by block j, [64, rows of the block] float32, and what `meanwhile` computes.

    Args:
      tile: [pieces, 64, columns] in shared memory; the block has as many pieces, one per stage.
      free: free each piece once the next one's product is under way.
    """
    pieces = tile.shape[0]
    # Waited for out here: zeros of an accumulator are written out before a branch.
    first = ring.wait(j * pieces)

    def multiply(out):
        for x in range(pieces):
            stage = ring.wait(j * pieces + x) if x else first
            wgmma(out, tile.at[x + opaque_zero(j)], stage.block.transpose((1, 0)))
            if x and free:
                plgpu.wgmma_wait(1)
                ring.free(j * pieces + (x - 1))
        beside = meanwhile()
        return out[...], beside

    out = plgpu.WGMMAAccumulatorRef((ROWS, ring.memory.block.shape[1]), jnp.float32)
    result = pl.run_scoped(multiply, out)
    if free:
        ring.free(j * pieces + (pieces - 1))
    return result


def zeros(columns: int) -> jax.Array:
    return plgpu.layout_cast(jnp.zeros((ROWS, columns), jnp.float32), SCORES)
