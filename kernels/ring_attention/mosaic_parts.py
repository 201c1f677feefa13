"""What the attention kernels share: their static parameters, the mask, and the online softmax.

Arrays are register tiles of one warpgroup, in the layout of wgmma's results. Maxima are in units of
log2 (the score times scale times log2(e)), so that each exponential is one exp2.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

LOG2_E = math.log2(math.e)
SCORES = plgpu.Layout.WGMMA
# The layouts of one value per row and per column of a block of scores.
ROW, COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)
# Columns that are masked at a time.
_PIECE = 8


class Problem(NamedTuple):
    """The static parameters of a kernel, all known when it is traced.

    Attributes:
      is_causal: query i sees keys up to i, or with a window, the last ones up to offset + i.
      window: keys that a query sees, its own and those before it; None is all.
      has_segments: whether a query sees only the keys of its own segment.
    """

    is_causal: bool
    scale: float
    heads_per_kv: int
    width: int
    dtype: Any
    window: int | None = None
    has_segments: bool = False

    @property
    def hides_later(self) -> bool:
        return self.is_causal or self.window is not None


class Sight(NamedTuple):
    """What decides which keys are seen and is known only when a kernel runs: two int32 scalars.

    Attributes:
      limit: keys from this index on do not count.
      offset: the position of query 0 minus that of key 0; 0 without a window.
    """

    limit: Any
    offset: Any


def per_row(rows: jax.Array, shape) -> jax.Array:
    """Broadcast a value per row to all columns of a shape."""
    return lax.broadcast_in_dim(rows, shape, [0])


def mask(
    scores: jax.Array, problem: Problem, sight: Sight, first_query, first_key, *,
    keys_in_rows: bool = False, ids: tuple[jax.Array, Any] | None = None,
) -> jax.Array:  # fmt: skip
    """Set scores of a block to -inf where the query does not see the key.

    A branch skips this for most blocks, which are visible whole; a second loop for masked blocks
    costs registers. It works on eight columns at a time, since the compiler keeps what does not
    change from block to block in registers: two columns per thread instead of all.

    Args:
      scores: [64, n], queries by keys, or keys by queries if `keys_in_rows`.
      first_query, first_key: of the block.
      ids: with segments: ids of the rows, in registers, and of the columns, in memory.
    """
    rows, columns = scores.shape
    distance = sight.offset + first_query - first_key
    limit = sight.limit - first_key

    def seen(row) -> tuple[Any, Any]:
        """Return the first column that a row sees, and the one after the last."""
        low, high = 0, limit
        if keys_in_rows:
            low = row - distance if problem.hides_later else 0
            high = columns if problem.window is None else row - distance + problem.window
            return low, jnp.where(row < limit, high, 0)
        if problem.hides_later:
            high = jnp.minimum(limit, row + (distance + 1))
        if problem.window is not None:
            low = row + (distance + 1 - problem.window)
        return low, high

    def hide(scores):
        shape = (rows, _PIECE)
        row, column = (
            plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=SCORES) for axis in range(2)
        )
        low, high = seen(row)
        pieces = []
        for x in range(0, columns, _PIECE):
            visible = column < high - x
            if not isinstance(low, int):
                visible &= column >= low - x
            if ids is not None:
                of_columns = plgpu.load(ids[1].at[pl.ds(x, _PIECE)], layout=COLUMN, optimized=False)
                visible &= per_row(ids[0], shape) == lax.broadcast_in_dim(of_columns, shape, [1])
            pieces.append(jnp.where(visible, scores[:, x : x + _PIECE], -jnp.inf))
        return jnp.concatenate(pieces, axis=1)

    if ids is not None:
        return hide(scores)
    hides = limit < (rows if keys_in_rows else columns)
    if problem.hides_later:
        hides |= distance < (rows if keys_in_rows else columns) - 1
    if problem.window is not None:
        hides |= distance > problem.window - (columns if keys_in_rows else rows)
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
