"""What both Mosaic kernels do with a block of scores: mask, online softmax, values, the carry.

Arrays here are register tiles of one warpgroup, in the layout of wgmma's results. Maxima are in
units of log2 (the score times scale times log2(e)), so that each exponential is one exp2.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels.hopper import i32
from parallax.kernels.interpreting import interpreter
from parallax.kernels.ring_attention.tiles import ROWS

LOG2_E = math.log2(math.e)
SCORES = plgpu.Layout.WGMMA
ROW = plgpu.Layout.WGMMA.reduce(1)


class Problem(NamedTuple):
    """What a kernel is made for; all of it known when it is traced."""

    is_causal: bool
    scale: float
    heads_per_kv: int
    width: int
    dtype: Any


class State(NamedTuple):
    """Attention of one warpgroup's rows so far: [64, columns], [64] and [64] float32."""

    acc: jax.Array
    m: jax.Array
    l: jax.Array


class Carries(NamedTuple):
    """The carry in device memory: o [B, H, L, V], m and l [B, H, L padded to whole tiles]."""

    o: Any
    m: Any
    l: Any


class Span(NamedTuple):
    """Blocks of keys that some row of a block of threads sees.

    Attributes:
      limit: keys from here on do not count.
      steps: blocks, at least one: no barrier then waits for a copy that nobody asked for.
    """

    limit: jax.Array
    steps: jax.Array


def span(problem: Problem, keys: int, limit, first_row, rows: int) -> Span:
    """Of `rows` rows from `first_row`, in blocks of `keys`."""
    seen = jnp.minimum(limit, first_row + rows) if problem.is_causal else limit
    return Span(limit, jnp.maximum(lax.div(seen + (keys - 1), i32(keys)), 1))


def empty_state(columns: int) -> State:
    def full(shape, value, layout):
        return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)

    return State(
        full((ROWS, columns), 0, SCORES), full((ROWS,), -jnp.inf, ROW), full((ROWS,), 0, ROW)
    )


def down(rows: jax.Array, shape) -> jax.Array:
    """A value for each row, for each column."""
    return lax.broadcast_in_dim(rows, shape, [0])


def scores_of(q_ref, k_ref) -> jax.Array:
    """q [64, D] by k [keys, D], both in shared memory: [64, keys] float32."""

    def multiply(out):
        plgpu.wgmma(out, q_ref, k_ref.transpose((1, 0)))
        return out[...]

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((ROWS, k_ref.shape[0]), jnp.float32))


def mask(scores: jax.Array, problem: Problem, span: Span, j, keys: int, first_row) -> jax.Array:
    """Scores of key block j, -inf where the query does not see the key.

    In a branch inside the one loop: a second loop for masked blocks costs registers.
    """

    def hide(scores):
        first_key = j * keys
        columns = plgpu.broadcasted_iota(jnp.int32, scores.shape, 1, layout=SCORES) + first_key
        seen = columns < span.limit
        if problem.is_causal:
            rows = plgpu.broadcasted_iota(jnp.int32, scores.shape, 0, layout=SCORES) + first_row
            seen &= columns <= rows
        return jnp.where(seen, scores, -jnp.inf)

    end = (j + 1) * keys
    hides = end > span.limit
    if problem.is_causal:
        hides |= end > first_row + 1
    return lax.cond(hides, hide, lambda scores: scores, scores)


def finite(m: jax.Array) -> jax.Array:
    """0 in place of the -inf of a row that has seen no key, so that no inf - inf appears."""
    return jnp.where(m == -jnp.inf, 0.0, m)


def soften(state: State, scores: jax.Array, scale: float) -> tuple[State, jax.Array]:
    """Takes scores in. Returns the state, its output not yet added to, and the weights p."""
    factor = scale * LOG2_E
    m = jnp.maximum(state.m, scores.max(axis=1) * factor)
    base = finite(m)
    p = jnp.exp2(scores * factor - down(base, scores.shape))
    shrink = jnp.exp2(state.m - base)
    l = state.l * shrink + p.sum(axis=1)
    return State(state.acc * down(shrink, state.acc.shape), m, l), p


def add_values(state: State, p: jax.Array, v_ref, problem: Problem) -> State:
    """Adds p [64, keys], from registers, by v [keys, columns], in shared memory."""
    p = p.astype(problem.dtype)
    if interpreter() is not None:
        # The interpreter has no accumulators with a start value and no operand from registers.
        values = v_ref[...].astype(jnp.float32)
        plgpu.commit_smem()  # what wgmma, which reads as the copies write, need not do
        return state._replace(acc=state.acc + jnp.dot(p.astype(jnp.float32), values))
    multiply = pl.run_state(lambda acc: plgpu.wgmma(acc, p, v_ref))
    return state._replace(acc=multiply(plgpu.WGMMAAccumulatorRef.init(state.acc)))


def merge_into_carry(
    old: Carries, new: Carries, state: State, at: tuple, stage, arrived, *,
    first_column: Any = 0, writes_rows: Any = True,
) -> None:  # fmt: skip
    """Folds the state into the carry of rows `at` = (b, h, rows), some columns at a time.

    `stage` is [64, columns] float32 in shared memory and `arrived` its barrier. Rows of o beyond
    the last are neither read nor written: copies stop at an array's end.
    """
    m_old, l_old = (plgpu.load(x.at[at], layout=ROW, optimized=False) for x in (old.m, old.l))
    m_old *= LOG2_E
    m = jnp.maximum(state.m, m_old)
    keep_old, keep = jnp.exp2(m_old - finite(m)), jnp.exp2(state.m - finite(m))

    @pl.when(writes_rows)
    def _():
        new.m[at] = m * (1 / LOG2_E)
        new.l[at] = l_old * keep_old + state.l * keep

    columns = stage.shape[1]
    for start in range(0, state.acc.shape[1], columns):
        here = (*at, pl.ds(first_column + start, columns))
        plgpu.copy_gmem_to_smem(old.o.at[here], stage, arrived)
        plgpu.barrier_wait(arrived)
        o = plgpu.load(stage, layout=SCORES)
        part = state.acc[:, start : start + columns]
        stage[...] = o * down(keep_old, o.shape) + part * down(keep, o.shape)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(stage, new.o.at[here])
        plgpu.wait_smem_to_gmem(0)
