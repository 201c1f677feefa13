"""The loop of one warpgroup over its blocks of keys, with products in sequence or overlapped.

In sequence (`walk`): scores of block j, softmax of j, values of j. The tensor cores idle during a
warpgroup's softmax, unless the other warpgroup's products run then: `turns` ensures that, by a pair
of barriers with which the two alternate (FlashAttention-3's ping-pong).
Overlapped (`walk_ahead`): scores of block j are issued before the values of j - 1, and the softmax
of j runs while those multiply (FlashAttention-3's pipeline within a warpgroup).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels.chip import ROWS
from parallax.kernels.hopper import i32
from parallax.kernels.interpreting import interpreter
from parallax.kernels.ring_attention.mosaic_parts import (
    SCORES,
    Problem,
    State,
    online_softmax,
    per_row,
)


class Blocks(NamedTuple):
    """The operations of a warpgroup on its blocks of keys; j is the number of a block.

    Attributes:
      keys: keys per block.
      multiply: (j, out) issues queries by keys into the accumulator `out`.
      scores: (j, product) releases keys j and returns the whole, masked scores of that product.
      values: (j) waits for values j, in shared memory.
      free: (j) releases values j.
      prepare: (j) waits for the first operands of block j + 1; -1 before the first block. All
        later calls are made while products are under way.
      take_turn, pass_turn: products are issued between the two.
    """

    keys: int
    multiply: Callable[[Any, Any], None]
    scores: Callable[[Any, jax.Array], jax.Array]
    values: Callable[[Any], Any]
    free: Callable[[Any], None]
    prepare: Callable[[Any], None]
    take_turn: Callable[[], None]
    pass_turn: Callable[[], None]

    def accumulator(self) -> Any:
        return plgpu.WGMMAAccumulatorRef((ROWS, self.keys), jnp.float32)


def walk(blocks: Blocks, steps, state: State, problem: Problem) -> State:
    """Add blocks 0 to steps - 1 to the state; it starts and ends with the turn taken."""

    def step(j, state):
        def multiply(out):
            blocks.multiply(j, out)
            blocks.pass_turn()
            return out[...]

        scores = blocks.scores(j, pl.run_scoped(multiply, blocks.accumulator()))
        m, l, p, shrink = online_softmax(state.m, state.l, scores, problem)
        acc = state.acc * per_row(shrink, state.acc.shape)
        # None of this may move past take_turn: the other warpgroup would wait for it.
        acc, m, l, p = lax.optimization_barrier((acc, m, l, p.astype(problem.dtype)))
        values = blocks.values(j)
        blocks.take_turn()
        acc = add(acc, p, values, functools.partial(blocks.prepare, j))
        blocks.free(j)
        return State(acc, m, l)

    blocks.prepare(i32(-1))
    return lax.fori_loop(0, steps, step, state)


def walk_ahead(blocks: Blocks, steps, state: State, problem: Problem) -> State:
    """Do what `walk` does, overlapping each block's softmax with the product of the last values."""

    zero = i32(0)

    def first(out):
        blocks.multiply(zero, out)
        blocks.pass_turn()
        return out[...]

    blocks.prepare(i32(-1))
    scores = blocks.scores(zero, pl.run_scoped(first, blocks.accumulator()))
    m, l, p, _ = online_softmax(state.m, state.l, scores, problem)
    blocks.prepare(zero)

    def step(j, carried):
        state, p = carried
        state, p, shrink = multiply_both(blocks, j, state, p, problem)
        blocks.free(j - 1)
        return state._replace(acc=state.acc * per_row(shrink, state.acc.shape)), p

    # The accumulator is still empty: nothing to rescale.
    start = State(state.acc, m, l), p.astype(problem.dtype)
    state, p = lax.fori_loop(1, steps, step, start)
    values = blocks.values(steps - 1)
    blocks.take_turn()
    state = state._replace(acc=add(state.acc, p, values))
    blocks.free(steps - 1)
    return state


def multiply_both(blocks: Blocks, j, state: State, p: jax.Array, problem: Problem):
    """Add p by values j - 1, and meanwhile compute the softmax of block j's scores.

    Returns the state, whose accumulator is not yet rescaled; the weights of block j; and the factor
    to rescale by.
    """
    if interpreter() is not None:  # it supports no accumulator with a start value

        def multiply(out):
            blocks.take_turn()
            blocks.multiply(j, out)
            return out[...]

        scores = pl.run_scoped(multiply, blocks.accumulator())
        acc = add(state.acc, p, blocks.values(j - 1))
        blocks.pass_turn()
        m, l, p, shrink = online_softmax(state.m, state.l, blocks.scores(j, scores), problem)
        blocks.prepare(j)
        return State(acc, m, l), p.astype(problem.dtype), shrink

    def issue(product):
        blocks.take_turn()
        blocks.multiply(j, product)
        values = blocks.values(j - 1)

        def meanwhile(refs):
            acc, *updated = refs
            plgpu.wgmma(acc, p, values)
            blocks.pass_turn()
            # At most the second product is still under way. The barriers keep the code between them
            # in place: arithmetic on registers moves freely otherwise.
            scores = lax.optimization_barrier(plgpu.wgmma_accumulator_load(product, wait_n=1))
            new = online_softmax(state.m, state.l, blocks.scores(j, scores), problem)
            for ref, value in zip(updated, lax.optimization_barrier(new), strict=True):
                ref[...] = value
            # `prepare` waits, hence branches, and the assembler does not move the wait for the
            # second product over a branch. Without it, that wait came before the exponentials.
            blocks.prepare(j)

        empty = plgpu.layout_cast(jnp.zeros((ROWS, blocks.keys), jnp.float32), SCORES)
        start = plgpu.WGMMAAccumulatorRef.init(state.acc)
        return pl.run_state(meanwhile)((start, state.m, state.l, empty, state.l))

    acc, m, l, p_new, shrink = pl.run_scoped(issue, blocks.accumulator())
    # The product read p until now, but the compiler believes it was done when it was issued: if
    # rounded earlier, the new weights would overwrite the old ones.
    p_new = lax.optimization_barrier(p_new).astype(problem.dtype)
    return State(acc, m, l), p_new, shrink


def add(
    acc: jax.Array, p: jax.Array, v_ref, meanwhile: Callable[[], None] | None = None
) -> jax.Array:
    """Return acc + p [64, keys], in registers, by v [keys, columns], in shared memory."""
    if interpreter() is not None:
        # Nor does it support an operand in registers.
        values = v_ref[...].astype(jnp.float32)
        plgpu.commit_smem()  # a fence for what threads have read; wgmma needs none
        if meanwhile is not None:
            meanwhile()
        return acc + jnp.dot(p.astype(jnp.float32), values)

    def multiply(acc):
        plgpu.wgmma(acc, p, v_ref)
        if meanwhile is not None:
            meanwhile()

    start: Any = plgpu.WGMMAAccumulatorRef.init(acc)
    return pl.run_state(multiply)(start)
