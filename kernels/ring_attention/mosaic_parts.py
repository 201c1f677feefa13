"""What the attention kernels share: their static parameters, the mask, and the online softmax.

Scores are [64 rows of a tile, rows of a block], in the registers of one warpgroup as wgmma's
results lie. Rows of a tile are queries, in the backward kernels that make dk and dv keys. Maxima
are in units of log2 (the score times scale times log2(e)), so that each exponential is one exp2.
"""

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels.chip import ROWS
from parallax.kernels.ring_attention.mask import Sight

LOG2_E = math.log2(math.e)
SCORES = plgpu.Layout.WGMMA
# The layouts of one value per row and per column of a block of scores.
ROW, COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)
# Columns that are masked at a time.
_PIECE = 8


class Problem(NamedTuple):
    """The static parameters of a kernel, all known when it is traced: see `mask.Sight`."""

    is_causal: bool
    scale: float
    heads_per_kv: int
    width: int
    dtype: Any
    window: int | None = None
    has_segments: bool = False


class MaskArrays(NamedTuple):
    """What a kernel learns of the mask as it runs, in device memory.

    Attributes:
      numbers: [2] int32, limit and offset (`mask.Sight`).
      q_ids, kv_ids: [B, tokens] int32, segment ids padded to whole blocks; None without segments.
      shared: [B, tiles, 2] int32, see `mask.shared_blocks`; None without segments.
    """

    numbers: Any
    q_ids: Any
    kv_ids: Any
    shared: Any

    def sight(self, problem: Problem, *, by_keys: bool = False) -> Sight:
        limit, offset = self.numbers[0], self.numbers[1]
        return Sight(problem.is_causal, problem.window, limit, offset, by_keys)

    def shared_of(self, batch, tile) -> Any:
        return None if self.shared is None else self.shared.at[batch, tile]


def zeros(columns: int) -> jax.Array:
    return plgpu.layout_cast(jnp.zeros((ROWS, columns), jnp.float32), SCORES)


def load(ref: Any, layout: Any) -> jax.Array:
    """Load one value per row, or per column, of a block of scores."""
    return plgpu.load(ref, layout=layout, optimized=False)


def per_row(rows: jax.Array, shape) -> jax.Array:
    """Broadcast a value per row to all columns of a shape."""
    return lax.broadcast_in_dim(rows, shape, [0])


def hide(scores: jax.Array, sight: Sight, row, column, ids: jax.Array | None, of_block) -> Any:
    """Set scores of rows from `row`, columns from `column` on to -inf where a query sees no key.

    A branch skips this for blocks that are visible whole, which segments leave none; a second loop
    for masked blocks costs registers. It works on eight columns at a time, since the compiler keeps
    in registers what is the same for all blocks.

    Args:
      ids, of_block: segment ids of the rows, in registers, and of the columns, in memory.
    """
    (low, _), (_, high) = sight.met(row + (ROWS - 1)), sight.met(row)
    whole = [] if low is None else [column >= low]
    if high is not None:
        whole.append(column + scores.shape[1] <= high)
    if ids is not None:
        whole.append(column + sight.limit < 0)  # never: but as a branch it takes fewer registers
    if not whole:
        return scores

    def hidden(scores):
        shape = ROWS, _PIECE
        rows, columns = (
            plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=SCORES) for axis in range(2)
        )
        low, high = (x if x is None else x - column for x in sight.met(rows + row))

        def piece(x):
            # In this order, little depends on both block and piece.
            seen = []
            if low is not None and high is not None:
                # One comparison for both: without a sign, what is before the first is large.
                span = jnp.maximum(high - low, 0).astype(jnp.uint32)
                seen.append((columns - low + x).astype(jnp.uint32) < span)
            elif low is not None:
                seen.append(columns >= low - x)
            elif high is not None:
                seen.append(columns - high < -x)
            if ids is not None:
                others = load(of_block.at[pl.ds(x, _PIECE)], COLUMN)
                both = enumerate((ids, others))
                seen.append(operator.eq(*(lax.broadcast_in_dim(v, shape, [x]) for x, v in both)))
            scores_x = scores[:, x : x + _PIECE]
            for condition in seen:  # one by one: conditions combined take registers of their own
                scores_x = jnp.where(condition, scores_x, -jnp.inf)
            return scores_x

        return jnp.concatenate([piece(x) for x in range(0, scores.shape[1], _PIECE)], axis=1)

    is_whole = functools.reduce(jnp.logical_and, whole)
    return lax.cond(is_whole, lambda scores: scores, hidden, scores)


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
