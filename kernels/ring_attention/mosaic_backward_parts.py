"""The blocks that both backward kernels visit, and how these come into shared memory.

"Fixed" rows stay with a thread block and "moving" rows stream past: queries and keys for dq, keys
and queries for dk and dv, where scores are [keys, queries].
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels.hopper import i32
from parallax.kernels.ring_attention.backward_tiles import Pass
from parallax.kernels.ring_attention.mosaic_parts import Problem

# The axis of thread blocks that share the moving rows.
CLUSTER = "cluster"


class MovingBlocks(NamedTuple):
    """The blocks of moving rows that some fixed row of a cluster is multiplied by.

    Attributes:
      problem, cut: what is computed, and its tiling.
      limit: keys from this index on do not count.
      head: head of the fixed rows.
      first_block, blocks: first block, and number of blocks, of each moving head.
      steps: number of steps in all; at least one, so that every barrier has a copy to wait for.
    """

    problem: Problem
    cut: Pass
    limit: jax.Array
    head: jax.Array
    first_block: jax.Array
    blocks: jax.Array
    steps: jax.Array

    def at(self, step) -> tuple[jax.Array, jax.Array]:
        """Return the head and the first row of a step's moving block."""
        group = self.problem.heads_per_kv
        if not self.cut.keys_fixed:
            return lax.div(self.head, i32(group)), step * self.cut.moving
        block = self.first_block + lax.rem(step, self.blocks)
        return self.head * group + lax.div(step, self.blocks), block * self.cut.moving


class Block(NamedTuple):
    """The arrays and indices of one thread block.

    Attributes:
      fixed, moving: arrays in device memory, [B, tokens, heads, K].
      sums: lse in units of log2, and delta times the scale, [B, H, L] float32.
      results: by name, [B, tokens, heads, K] float32.
      b, h, first: sequence, head and first row of the fixed rows.
      part: which part of the results' columns.
      walk: the moving rows.
    """

    fixed: tuple[Any, Any]
    moving: tuple[Any, Any]
    sums: tuple[Any, Any]
    results: dict[str, Any]
    b: jax.Array
    h: jax.Array
    first: jax.Array
    part: jax.Array
    walk: MovingBlocks


def block_of(arrays: tuple, problem: Problem, cut: Pass, q_length: int) -> Block:
    """Return the work of this thread block, from q, k, v, d_out, lse, delta, limit and results."""
    q, k, v, d_out, lse, delta, limit, *results = arrays
    queries, keys = (q, d_out), (k, v)
    fixed, moving = (keys, queries) if cut.keys_fixed else (queries, keys)
    block = lax.axis_index("rows")
    if problem.is_causal and not cut.keys_fixed:  # the rows with the most work first
        block = lax.axis_size("rows") - 1 - block
    h, part = (f(lax.axis_index("heads"), i32(cut.parts)) for f in (lax.div, lax.rem))
    first = block * (cut.fixed * cut.cluster)
    walk = _moving_blocks(problem, cut, limit[0], h, first, q_length)
    if cut.cluster > 1:
        first += lax.axis_index(CLUSTER) * cut.fixed
    return Block(
        fixed, moving, (lse, delta), dict(zip(cut.makes, results, strict=True)),
        lax.axis_index("batch"), h, first, part, walk,
    )  # fmt: skip


def _moving_blocks(problem: Problem, cut: Pass, limit, head, first, q_length: int) -> MovingBlocks:
    """Return the moving blocks of a cluster's fixed rows, which start at row `first` of `head`."""
    moving = i32(cut.moving)
    if cut.keys_fixed:
        first_block = lax.div(first, moving) if problem.is_causal else i32(0)
        blocks = -(-q_length // cut.moving) - first_block
        steps = jnp.where(first < limit, blocks * problem.heads_per_kv, 1)
        return MovingBlocks(problem, cut, limit, head, first_block, blocks, steps)
    seen = jnp.minimum(limit, first + cut.fixed * cut.cluster) if problem.is_causal else limit
    blocks = jnp.maximum(lax.div(seen + (moving - 1), moving), 1)
    return MovingBlocks(problem, cut, limit, head, i32(0), blocks, blocks)


class Ring(NamedTuple):
    """A circular buffer in shared memory for the blocks of a moving array.

    Attributes:
      memory: [stages, ...].
      full: per stage, a barrier that completes when a block has arrived.
      empty: per stage, a barrier that completes when no consumer needs the block any more; in a
        cluster, no consumer of any of its thread blocks.
      stages: number of stages.
    """

    memory: Any
    full: Any
    empty: Any
    stages: int

    def slot(self, number) -> jax.Array:
        """Return the stage that holds a block, by the block's number."""
        return lax.rem(number, i32(self.stages)) + opaque_zero(number)

    def wait(self, number) -> jax.Array:
        """Wait until a block has arrived, and return its stage."""
        stage = self.slot(number)
        plgpu.barrier_wait(self.full.at[stage])
        return stage

    def release(self, number, *, loaded: bool = False) -> None:
        """Mark a block as no longer needed by this warpgroup.

        `loaded`: threads have read it too, not wgmma alone. Then a fence must come before the copy
        engine may overwrite it.
        """
        if loaded:
            plgpu.commit_smem()
        plgpu.barrier_arrive(self.empty.at[self.slot(number)])

    def fill(self, number, copies: Callable[[Any], Iterable[tuple]], cluster: int) -> None:
        """Start the copies, pairs (source, target), into a stage once it is empty.

        The thread blocks of a cluster copy a share each, to the shared memory of all of them.
        """
        stage = self.slot(number)
        pl.when(number >= self.stages)(functools.partial(plgpu.barrier_wait, self.empty.at[stage]))
        to_all = CLUSTER if cluster > 1 else None
        for source, memory in copies(stage):
            plgpu.copy_gmem_to_smem(source, memory, self.full.at[stage], collective_axes=to_all)

    def drain(self, count) -> None:
        """Wait until all stages are empty, so that nothing writes or arrives after this block ends.

        The interpreter of JAX 0.11 also requires every arrival to be waited for.
        """

        @pl.loop(lax.max(count - self.stages, i32(0)), count)
        def _(number):
            plgpu.barrier_wait(self.empty.at[self.slot(number)])


def ring_barriers(stages: int, copies: int, readers: int, cluster: int) -> tuple[Any, Any]:
    """Return the barriers `full` and `empty` of a ring.

    Args:
      copies: copies per block. readers: warpgroups that read each block.
    """
    full = plgpu.Barrier(num_barriers=stages, num_arrivals=copies)
    if cluster == 1:
        return full, plgpu.Barrier(num_barriers=stages, num_arrivals=readers)
    return full, plgpu.ClusterBarrier(
        collective_axes=(CLUSTER,), num_barriers=stages, num_arrivals=readers
    )


def opaque_zero(step) -> jax.Array:
    """Return 0 for every step below 2^30, which the compiler cannot know.

    Addresses of operands that do not move would otherwise be computed once and kept: 64 bits for
    every 16 columns, more registers than there are.
    """
    return lax.shift_right_logical(step, i32(30))
