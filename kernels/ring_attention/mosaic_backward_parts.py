"""Which blocks there are, for both backward kernels, and how they come into shared memory.

"Fixed" rows stay with a block of threads and "moving" ones stream past: queries and keys for dq,
keys and queries for dk and dv, where scores are [keys, queries].
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

# The axis of blocks of threads that share what streams past.
CLUSTER = "cluster"


class Walk(NamedTuple):
    """Blocks of moving rows that some fixed row of a cluster meets.

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


class Block(NamedTuple):
    """What one block of threads is given.

    Attributes:
      fixed, moving: arrays in device memory, [B, tokens, heads, K].
      sums: lse in units of log2, and delta times the scale, [B, H, L] float32.
      results: by name, [B, tokens, heads, K] float32.
      b, h, first: sequence, head and first of the fixed rows.
      part: of the columns of the results.
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
    walk: Walk


def block_of(arrays: tuple, problem: Problem, cut: Pass, q_length: int) -> Block:
    """From q, k, v, d_out, lse, delta, limit and the results."""
    q, k, v, d_out, lse, delta, limit, *results = arrays
    queries, keys = (q, d_out), (k, v)
    fixed, moving = (keys, queries) if cut.keys_fixed else (queries, keys)
    place = lax.axis_index("rows")
    if problem.is_causal and not cut.keys_fixed:  # the rows with the most work first
        place = lax.axis_size("rows") - 1 - place
    h, part = (f(lax.axis_index("heads"), i32(cut.parts)) for f in (lax.div, lax.rem))
    first = place * (cut.fixed * cut.cluster)
    walk = _walk(problem, cut, limit[0], h, first, q_length)
    if cut.cluster > 1:
        first += lax.axis_index(CLUSTER) * cut.fixed
    return Block(
        fixed, moving, (lse, delta), dict(zip(cut.makes, results, strict=True)),
        lax.axis_index("batch"), h, first, part, walk,
    )  # fmt: skip


def _walk(problem: Problem, cut: Pass, limit, head, first, q_length: int) -> Walk:
    """Of a cluster's fixed rows, from row `first` of `head`."""
    moving = i32(cut.moving)
    if cut.keys_fixed:
        first_block = lax.div(first, moving) if problem.is_causal else i32(0)
        blocks = -(-q_length // cut.moving) - first_block
        steps = jnp.where(first < limit, blocks * problem.heads_per_kv, 1)
        return Walk(problem, cut, limit, head, first_block, blocks, steps)
    seen = jnp.minimum(limit, first + cut.fixed * cut.cluster) if problem.is_causal else limit
    blocks = jnp.maximum(lax.div(seen + (moving - 1), moving), 1)
    return Walk(problem, cut, limit, head, i32(0), blocks, blocks)


class Ring(NamedTuple):
    """Blocks of a moving array in shared memory at a time.

    Attributes:
      memory: [stages, ...].
      here: barriers: a block has arrived.
      free: barriers: it is no longer needed; in a cluster, by none of its blocks of threads.
      stages: blocks.
    """

    memory: Any
    here: Any
    free: Any
    stages: int

    def slot(self, turn) -> jax.Array:
        """Where the block of a turn lies."""
        return lax.rem(turn, i32(self.stages)) + nought(turn)

    def wait(self, turn) -> jax.Array:
        """The slot, once the block is there."""
        slot = self.slot(turn)
        plgpu.barrier_wait(self.here.at[slot])
        return slot

    def release(self, turn, *, loaded: bool = False) -> None:
        """This warpgroup is done with the block; `loaded`: not by wgmma alone.

        What threads have read themselves, the copy engine may overwrite after a fence.
        """
        if loaded:
            plgpu.commit_smem()
        plgpu.barrier_arrive(self.free.at[self.slot(turn)])

    def fill(self, turn, copies: Callable[[Any], Iterable[tuple]], cluster: int) -> None:
        """Copies pairs (from, to) for a slot, once it is free.

        The blocks of threads of a cluster copy a share each, to the shared memory of all of them.
        """
        slot = self.slot(turn)
        pl.when(turn >= self.stages)(functools.partial(plgpu.barrier_wait, self.free.at[slot]))
        to_all = CLUSTER if cluster > 1 else None
        for source, memory in copies(slot):
            plgpu.copy_gmem_to_smem(source, memory, self.here.at[slot], collective_axes=to_all)

    def drain(self, turns) -> None:
        """Waits until all of it is free: none then writes here, nor arrives, when this has ended.

        Nor does the interpreter of JAX 0.11 take arrivals that nobody waits for.
        """

        @pl.loop(lax.max(turns - self.stages, i32(0)), turns)
        def _(turn):
            plgpu.barrier_wait(self.free.at[self.slot(turn)])


def rings_barriers(stages: int, copies: int, readers: int, cluster: int) -> tuple[Any, Any]:
    """`here` and `free` of a ring: of so many copies a block, and so many warpgroups that read."""
    here = plgpu.Barrier(num_barriers=stages, num_arrivals=copies)
    if cluster == 1:
        return here, plgpu.Barrier(num_barriers=stages, num_arrivals=readers)
    return here, plgpu.ClusterBarrier(
        collective_axes=(CLUSTER,), num_barriers=stages, num_arrivals=readers
    )


def nought(step) -> jax.Array:
    """0 in every step below 2^30, which the compiler cannot know.

    Addresses of operands that stay where they are would be computed once and kept: 64 bits for
    every 16 columns, more registers than there are.
    """
    return lax.shift_right_logical(step, i32(30))
