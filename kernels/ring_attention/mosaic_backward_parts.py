"""What both backward kernels do with a block of scores, and which blocks there are.

"Fixed" rows stay with a block of threads and "moving" ones stream past: queries and keys for dq,
keys and queries for dk and dv, where scores are [keys, queries].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels.hopper import i32
from parallax.kernels.interpreting import interpreter
from parallax.kernels.ring_attention.backward_tiles import Pass
from parallax.kernels.ring_attention.mosaic_parts import LOG2_E, ROW, SCORES, Problem
from parallax.kernels.ring_attention.tiles import ROWS

# A value for each column of a block of scores.
COLUMN = plgpu.Layout.WGMMA.reduce(0)


class Operands(NamedTuple):
    """Arrays in device memory: [B, tokens, heads, K], and [B, H, L] float32 in units of log2."""

    fixed: tuple[Any, ...]
    moving: tuple[Any, Any]
    lse: Any
    delta: Any
    limit: Any


class Walk(NamedTuple):
    """Blocks of moving rows that some fixed row of a block of threads meets.

    Attributes:
      problem, cut: what is computed, and how it is cut.
      limit: keys from here on do not count.
      head: of the fixed rows.
      first_block, blocks: of each head that they meet.
      steps: in all; at least one: no barrier then waits for a copy that nobody asked for.
    """

    problem: Problem
    cut: Pass
    limit: jax.Array
    head: jax.Array
    first_block: jax.Array
    blocks: jax.Array
    steps: jax.Array

    def at(self, step) -> tuple[jax.Array, jax.Array]:
        """Head and first row of the moving block of a step."""
        group = self.problem.heads_per_kv
        if not self.cut.keys_fixed:
            return lax.div(self.head, i32(group)), step * self.cut.moving
        block = self.first_block + lax.rem(step, self.blocks)
        return self.head * group + lax.div(step, self.blocks), block * self.cut.moving


def operands(cut: Pass, arrays: tuple) -> Operands:
    """Of q, k, v, d_out, lse, delta and limit."""
    q, k, v, d_out, lse, delta, limit = arrays
    queries, keys = (q, d_out), (k, v)
    fixed, moving = (keys, queries) if cut.keys_fixed else (queries, keys)
    return Operands(fixed, moving, lse, delta, limit)


def walk(problem: Problem, cut: Pass, limit, head, first_row, q_length: int) -> Walk:
    """Of the fixed rows from `first_row` of `head`."""
    moving = i32(cut.moving)
    if cut.keys_fixed:
        first = lax.div(first_row, moving) if problem.is_causal else i32(0)
        blocks = -(-q_length // cut.moving) - first
        steps = jnp.where(first_row < limit, blocks * problem.heads_per_kv, 1)
        return Walk(problem, cut, limit, head, first, blocks, steps)
    seen = jnp.minimum(limit, first_row + cut.fixed) if problem.is_causal else limit
    blocks = jnp.maximum(lax.div(seen + (moving - 1), moving), 1)
    return Walk(problem, cut, limit, head, i32(0), blocks, blocks)


def nought(step) -> jax.Array:
    """0 in every step below 2^30, which the compiler cannot know.

    Addresses of operands that stay where they are would be computed once and kept: 64 bits for
    every 16 columns, more registers than there are.
    """
    return lax.shift_right_logical(step, i32(30))


def slot_of(step, stages: int) -> jax.Array:
    """Where in a ring of `stages` blocks the block of a step lies."""
    return lax.rem(step, i32(stages)) if stages > 1 else nought(step)


def rows_of(ref, at: tuple) -> jax.Array:
    """A float32 for each of 64 fixed rows, from device memory."""
    return plgpu.load(ref.at[at], layout=ROW, optimized=False)


def columns_of(ref) -> jax.Array:
    """A float32 for each moving row, from shared memory."""
    return plgpu.load(ref, layout=COLUMN, optimized=False)


def spread(values: jax.Array, shape, cut: Pass) -> jax.Array:
    """A value for each query, over a block of scores."""
    return lax.broadcast_in_dim(values, shape, [1 if cut.keys_fixed else 0])


def weights(scores, lse, walk: Walk, first_row, first_column) -> jax.Array:
    """P of a block of scores, 0 where the query does not see the key.

    The mask is on P, not on the scores: a query that no key was visible to has lse = -inf.
    """
    problem, cut, limit = walk.problem, walk.cut, walk.limit
    p = jnp.exp2(scores * (problem.scale * LOG2_E) - spread(lse, scores.shape, cut))
    rows, columns = scores.shape

    def hide(p):
        row, column = (
            plgpu.broadcasted_iota(jnp.int32, p.shape, axis, layout=SCORES) + first
            for axis, first in enumerate((first_row, first_column))
        )
        query, key = (column, row) if cut.keys_fixed else (row, column)
        seen = key < limit
        if problem.is_causal:
            seen &= key <= query
        return jnp.where(seen, p, 0.0)

    first_key, keys, first_query = (
        (first_row, rows, first_column) if cut.keys_fixed else (first_column, columns, first_row)
    )
    end = first_key + keys
    hides = end > limit
    if problem.is_causal:
        hides |= end > first_query + 1
    return lax.cond(hides, hide, lambda p: p, p)


def gradient(p, dp, delta, walk: Walk) -> jax.Array:
    """dS: of the scores before they were scaled, float32."""
    return p * (dp - spread(delta, p.shape, walk.cut)) * walk.problem.scale


def product(*pairs) -> jax.Array:
    """The sum over pairs of fixed [64, K] by moving [n, K], in shared memory: [64, n] float32."""

    def multiply(out):
        for fixed, moving in pairs:
            plgpu.wgmma(out, fixed, moving.transpose((1, 0)))
        return out[...]

    moving_rows = pairs[0][1].shape[0]
    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((ROWS, moving_rows), jnp.float32))


def product_of_ring(fixed, ring, here, free, step, stages: int) -> jax.Array:
    """fixed [pieces, 64, K] by the next pieces of `ring` [stages, n, K], as they come: [64, n].

    A piece's memory is free once the product after it is under way.
    """
    pieces = fixed.shape[0]

    def slot(piece):
        return slot_of(step * pieces + piece, stages)

    def multiply(out):
        for piece in range(pieces):
            plgpu.barrier_wait(here.at[slot(piece)])
            plgpu.wgmma(out, fixed.at[piece + nought(step)], ring.at[slot(piece)].transpose((1, 0)))
            if piece:
                plgpu.wgmma_wait(1)
                plgpu.barrier_arrive(free.at[slot(piece - 1)])
        return out[...]

    dp = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((ROWS, ring.shape[1]), jnp.float32))
    plgpu.barrier_arrive(free.at[slot(pieces - 1)])
    return dp


def accumulate(acc, weights, moving, problem: Problem) -> jax.Array:
    """acc + weights [64, n], from registers, by moving [n, columns], in shared memory."""
    weights = weights.astype(problem.dtype)
    if interpreter() is not None:
        # The interpreter has no accumulators with a start value and no operand from registers.
        values = moving[...].astype(jnp.float32)
        plgpu.commit_smem()  # what wgmma, which reads as the copies write, need not do
        return acc + jnp.dot(weights.astype(jnp.float32), values)
    multiply = pl.run_state(lambda acc: plgpu.wgmma(acc, weights, moving))
    return multiply(plgpu.WGMMAAccumulatorRef.init(acc))


def zeros(columns: int) -> jax.Array:
    return plgpu.layout_cast(jnp.zeros((ROWS, columns), jnp.float32), SCORES)
