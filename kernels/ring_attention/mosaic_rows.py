"""Head dims up to 256: each computing warpgroup has 64 queries and all of their output."""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.hopper import i32
from parallax.kernels.ring_attention import mosaic_parts as parts
from parallax.kernels.ring_attention.mosaic_parts import Carries, Problem
from parallax.kernels.ring_attention.tiles import CHUNK, ROWS, Tile

LOADER = 2


def kernel(q, k, v, o, m, l, limit, o_new, m_new, l_new, *, problem: Problem, tile: Tile):
    """Body of one block of threads; arguments are arrays in device memory."""
    old, new, stages = Carries(o, m, l), Carries(o_new, m_new, l_new), tile.stages
    b, h, me = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("warpgroup")
    place = lax.axis_index("rows")
    if problem.is_causal:  # the rows with the most work first
        place = lax.axis_size("rows") - 1 - place
    first = place * tile.queries
    span = parts.span(problem, tile.keys, limit[0], first, tile.queries)

    def scope(q_mem, k_mem, v_mem, stage, q_here, k_here, v_here, k_free, v_free, arrived):
        def load():
            plgpu.set_max_registers(hopper.LOADER_REGISTERS, action="decrease")

            @pl.loop(0, span.steps)
            def _(j):
                slot = lax.rem(j, i32(stages))
                keys = (b, pl.ds(j * tile.keys, tile.keys), lax.div(h, i32(problem.heads_per_kv)))
                for source, memory, here, free in (
                    (k, k_mem, k_here, k_free),
                    (v, v_mem, v_here, v_free),
                ):
                    pl.when(j >= stages)(functools.partial(plgpu.barrier_wait, free.at[slot]))
                    plgpu.copy_gmem_to_smem(source.at[keys], memory.at[slot], here.at[slot])

            # Every arrival is waited for, or the interpreter of JAX 0.11 objects.
            @pl.loop(jnp.maximum(span.steps - stages, 0), span.steps)
            def _(j):
                for free in (k_free, v_free):
                    plgpu.barrier_wait(free.at[lax.rem(j, i32(stages))])

        def compute():
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            row = first + me * ROWS
            mine = q_mem.at[me]
            plgpu.copy_gmem_to_smem(q.at[b, pl.ds(row, ROWS), h], mine, q_here.at[me])
            plgpu.barrier_wait(q_here.at[me])

            def step(j, state):
                slot = lax.rem(j, i32(stages))
                plgpu.barrier_wait(k_here.at[slot])
                scores = parts.scores_of(mine, k_mem.at[slot])
                plgpu.barrier_arrive(k_free.at[slot])
                scores = parts.mask(scores, problem, span, j, tile.keys, row)
                state, p = parts.soften(state, scores, problem.scale)
                plgpu.barrier_wait(v_here.at[slot])
                state = parts.add_values(state, p, v_mem.at[slot], problem)
                plgpu.barrier_arrive(v_free.at[slot])
                return state

            state = lax.fori_loop(0, span.steps, step, parts.empty_state(problem.width))
            at = (b, h, pl.ds(row, ROWS))
            parts.merge_into_carry(old, new, state, at, stage.at[me], arrived.at[me])

        pl.when(me == LOADER)(load)
        pl.when(me != LOADER)(compute)

    def inputs(count: int, rows: int):
        return plgpu.SMEM(
            (count, rows, problem.width), problem.dtype, transforms=hopper.transforms(problem.dtype)
        )

    pl.run_scoped(
        scope,
        inputs(2, ROWS),
        inputs(stages, tile.keys),
        inputs(stages, tile.keys),
        plgpu.SMEM((2, ROWS, CHUNK), "float32", transforms=hopper.transforms("float32")),
        plgpu.Barrier(num_barriers=2),
        plgpu.Barrier(num_barriers=stages),
        plgpu.Barrier(num_barriers=stages),
        plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        plgpu.Barrier(num_barriers=2),
        collective_axes="warpgroup",
    )
