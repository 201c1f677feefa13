"""Operations of both backward kernels on a block of scores, in the registers of one warpgroup."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels.chip import ROWS
from parallax.kernels.interpreting import interpreter
from parallax.kernels.ring_attention.backward_tiles import Pass
from parallax.kernels.ring_attention.mosaic_backward_parts import MovingBlocks, Ring, opaque_zero
from parallax.kernels.ring_attention.mosaic_parts import LOG2_E, ROW, SCORES, Problem

# The layout of one value per column of a block of scores.
COLUMN = plgpu.Layout.WGMMA.reduce(0)


def rows_of(ref, at: tuple) -> jax.Array:
    """Load a float32 for each of 64 fixed rows from device memory."""
    return plgpu.load(ref.at[at], layout=ROW, optimized=False)


def columns_of(ref) -> jax.Array:
    """Load a float32 for each moving row from shared memory."""
    return plgpu.load(ref, layout=COLUMN, optimized=False)


def hide(scores, walk: MovingBlocks, first_row, first_column) -> jax.Array:
    """Set scores of a block to -inf where the query does not see the key.

    A branch skips this for most blocks, which are visible whole.
    """
    problem, keys_fixed, limit = walk.problem, walk.cut.keys_fixed, walk.limit
    rows, columns = scores.shape

    def hidden(scores):
        row, column = (
            plgpu.broadcasted_iota(jnp.int32, scores.shape, axis, layout=SCORES) + first
            for axis, first in enumerate((first_row, first_column))
        )
        query, key = (column, row) if keys_fixed else (row, column)
        seen = key < limit
        if problem.is_causal:
            seen &= key <= query
        return jnp.where(seen, scores, -jnp.inf)

    first_key, keys, first_query = first_column, columns, first_row
    if keys_fixed:
        first_key, keys, first_query = first_row, rows, first_column
    end = first_key + keys
    hides = end > limit
    if problem.is_causal:
        hides |= end > first_query + 1
    return lax.cond(hides, hidden, lambda scores: scores, scores)


def weights(scores, lse, walk: MovingBlocks) -> jax.Array:
    """Compute P of a block of scores."""
    factor = walk.problem.scale * LOG2_E
    return jnp.exp2(scores * factor - _spread(lse, scores.shape, walk.cut))


def gradient(p, dp, delta, walk: MovingBlocks) -> jax.Array:
    """Compute dS, the gradient of the unscaled scores, float32. `delta` is scaled already."""
    return p * (dp * walk.problem.scale - _spread(delta, p.shape, walk.cut))


def _spread(values: jax.Array, shape, cut: Pass) -> jax.Array:
    """Broadcast a value per query over a block of scores."""
    return lax.broadcast_in_dim(values, shape, [1 if cut.keys_fixed else 0])


def product(fixed, moving, *, meanwhile: Callable[[], Any] = lambda: ()) -> tuple[jax.Array, Any]:
    """Multiply fixed [64, K] by moving [n, K], both in shared memory, to [64, n] float32.

    Also returns what `meanwhile` computes while the tensor cores work.
    """

    def multiply(out):
        plgpu.wgmma(out, fixed, moving.transpose((1, 0)))
        other = meanwhile()
        return out[...], other

    out = plgpu.WGMMAAccumulatorRef((ROWS, moving.shape[0]), jnp.float32)
    return pl.run_scoped(multiply, out)


def product_of_ring(fixed, ring: Ring, step, *, keep: bool = False) -> jax.Array:
    """Multiply fixed [pieces, 64, K] by a step's pieces of `ring`, each [n, K], to [64, n].

    A piece's stage is released once the next product is under way, unless it is kept.
    """
    pieces = fixed.shape[0]

    def multiply(out):
        for piece in range(pieces):
            number = step * pieces + piece
            slot = ring.wait(number)
            moving = ring.memory.at[slot].transpose((1, 0))
            plgpu.wgmma(out, fixed.at[piece + opaque_zero(step)], moving)
            if piece and not keep:
                plgpu.wgmma_wait(1)
                ring.release(number - 1)
        return out[...]

    moving_rows = ring.memory.shape[1]
    out = plgpu.WGMMAAccumulatorRef((ROWS, moving_rows), jnp.float32)
    result = pl.run_scoped(multiply, out)
    if not keep:
        ring.release(step * pieces + (pieces - 1))
    return result


def accumulate(accs, terms, problem: Problem) -> tuple[jax.Array, ...]:
    """Add to each acc weights() [64, n], in registers, by moving [n, columns], in shared memory.

    Args:
      terms: (weights, moving) per acc; later weights may be computed while the tensor cores work.
    """
    if interpreter() is not None:
        # The interpreter supports no accumulator with a start value and no operand in registers.
        return tuple(_accumulate_interpreted(*x, problem) for x in zip(accs, terms, strict=True))

    def multiply(refs):
        for acc, (weights, moving) in zip(refs, terms, strict=True):
            plgpu.wgmma(acc, weights().astype(problem.dtype), moving)

    start: Any = tuple(map(plgpu.WGMMAAccumulatorRef.init, accs))
    return pl.run_state(multiply)(start)


def _accumulate_interpreted(acc, term, problem: Problem) -> jax.Array:
    weights, moving = term
    values = moving[...].astype(jnp.float32)
    plgpu.commit_smem()  # a fence for what threads have read; wgmma needs none
    return acc + jnp.dot(weights().astype(problem.dtype).astype(jnp.float32), values)


def zeros(columns: int) -> jax.Array:
    return plgpu.layout_cast(jnp.zeros((ROWS, columns), jnp.float32), SCORES)
