"""The walk of one warpgroup over its blocks of keys, one product after the other or overlapped.

In turn (`walk`): scores of block j, softmax of j, values of j. A warpgroup's tensor cores idle
during its softmax, unless the other one's products fall there: `turns` makes them, by a baton that
the two hand to each other (FlashAttention-3's ping-pong).
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
from parallax.kernels.ring_attention.mosaic_parts import SCORES, Problem, State, down, soften


class Blocks(NamedTuple):
    """Where a warpgroup's products come from; j is the number of a block.

    Attributes:
      keys: of a block.
      multiply: (j, out) issues queries by keys into the accumulator `out`.
      scores: (j, product) gives keys j back; whole and masked scores from that product.
      values: (j) waits for values j, in shared memory.
      free: (j) gives values j back.
      prepare: (j) waits for what the next block begins with; -1 before the first. All later ones
        while products are under way.
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
    """Adds blocks 0 to steps - 1 to the state; it starts and ends with the turn taken."""

    def step(j, state):
        def multiply(out):
            blocks.multiply(j, out)
            blocks.pass_turn()
            return out[...]

        scores = blocks.scores(j, pl.run_scoped(multiply, blocks.accumulator()))
        m, l, p, shrink = soften(state.m, state.l, scores, problem)
        acc = state.acc * down(shrink, state.acc.shape)
        # None of this may slip behind the turn: there the other one waits.
        acc, m, l, p = lax.optimization_barrier((acc, m, l, p.astype(problem.dtype)))
        values = blocks.values(j)
        blocks.take_turn()
        acc = add(acc, p, values, functools.partial(blocks.prepare, j))
        blocks.free(j)
        return State(acc, m, l)

    blocks.prepare(i32(-1))
    return lax.fori_loop(0, steps, step, state)


def walk_ahead(blocks: Blocks, steps, state: State, problem: Problem) -> State:
    """As `walk`, with each block's softmax behind the values of the one before."""

    zero = i32(0)

    def first(out):
        blocks.multiply(zero, out)
        blocks.pass_turn()
        return out[...]

    blocks.prepare(i32(-1))
    scores = blocks.scores(zero, pl.run_scoped(first, blocks.accumulator()))
    m, l, p, _ = soften(state.m, state.l, scores, problem)
    blocks.prepare(zero)

    def step(j, carried):
        state, p = carried
        state, p, shrink = multiply_both(blocks, j, state, p, problem)
        blocks.free(j - 1)
        return state._replace(acc=state.acc * down(shrink, state.acc.shape)), p

    # The accumulator is empty so far: nothing to shrink.
    start = State(state.acc, m, l), p.astype(problem.dtype)
    state, p = lax.fori_loop(1, steps, step, start)
    values = blocks.values(steps - 1)
    blocks.take_turn()
    state = state._replace(acc=add(state.acc, p, values))
    blocks.free(steps - 1)
    return state


def multiply_both(blocks: Blocks, j, state: State, p: jax.Array, problem: Problem):
    """Adds p by values j - 1, and softens the scores of block j meanwhile.

    Returns the state, its accumulator not yet shrunk; the weights of block j; and by how much to
    shrink.
    """
    if interpreter() is not None:  # it has no accumulators with a start value

        def multiply(out):
            blocks.take_turn()
            blocks.multiply(j, out)
            return out[...]

        scores = pl.run_scoped(multiply, blocks.accumulator())
        acc = add(state.acc, p, blocks.values(j - 1))
        blocks.pass_turn()
        m, l, p, shrink = soften(state.m, state.l, blocks.scores(j, scores), problem)
        blocks.prepare(j)
        return State(acc, m, l), p.astype(problem.dtype), shrink

    def issue(product):
        blocks.take_turn()
        blocks.multiply(j, product)
        values = blocks.values(j - 1)

        def meanwhile(refs):
            acc, *softened = refs
            plgpu.wgmma(acc, p, values)
            blocks.pass_turn()
            # At most the second product is still under way. The barriers keep what is between them
            # between them: arithmetic on registers moves freely otherwise.
            scores = lax.optimization_barrier(plgpu.wgmma_accumulator_load(product, wait_n=1))
            new = soften(state.m, state.l, blocks.scores(j, scores), problem)
            for ref, value in zip(softened, lax.optimization_barrier(new), strict=True):
                ref[...] = value
            # It waits, hence branches, and the assembler does not move the wait for the second
            # product over a branch. Without, that came before the exponentials.
            blocks.prepare(j)

        empty = plgpu.layout_cast(jnp.zeros((ROWS, blocks.keys), jnp.float32), SCORES)
        start = plgpu.WGMMAAccumulatorRef.init(state.acc)
        return pl.run_state(meanwhile)((start, state.m, state.l, empty, state.l))

    acc, m, l, p_new, shrink = pl.run_scoped(issue, blocks.accumulator())
    # The product read p until now, but the compiler believes that it was done when it was issued.
    # Rounded before, the new weights would have been written over the old ones.
    p_new = lax.optimization_barrier(p_new).astype(problem.dtype)
    return State(acc, m, l), p_new, shrink


def add(
    acc: jax.Array, p: jax.Array, v_ref, meanwhile: Callable[[], None] | None = None
) -> jax.Array:
    """acc + p [64, keys], from registers, by v [keys, columns], in shared memory."""
    if interpreter() is not None:
        # Nor has it an operand from registers.
        values = v_ref[...].astype(jnp.float32)
        plgpu.commit_smem()  # what wgmma, which reads as the copies write, need not do
        if meanwhile is not None:
            meanwhile()
        return acc + jnp.dot(p.astype(jnp.float32), values)

    def multiply(acc):
        plgpu.wgmma(acc, p, v_ref)
        if meanwhile is not None:
            meanwhile()

    start: Any = plgpu.WGMMAAccumulatorRef.init(acc)
    return pl.run_state(multiply)(start)
