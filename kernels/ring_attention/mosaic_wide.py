"""Head dim 512: both computing warpgroups share 64 queries.

Warpgroup w has columns w of two of Q, K, V and the output. It multiplies its half of head_dim,
hands its partial scores to the other through shared memory, and adds the other's; from there on
both have the same scores, maxima and weights, and each multiplies its own half of the values.
"""

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
HALVES = 2
# Where the barriers of keys and of values start in an array of them.
K, V = 0, HALVES


def kernel(q, k, v, o, m, l, limit, o_new, m_new, l_new, *, problem: Problem, tile: Tile):
    """Body of one block of threads; arguments are arrays in device memory."""
    old, new = Carries(o, m, l), Carries(o_new, m_new, l_new)
    half = problem.width // HALVES
    b, h, me = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("warpgroup")
    place = lax.axis_index("rows")
    if problem.is_causal:  # the rows with the most work first
        place = lax.axis_size("rows") - 1 - place
    first = place * tile.queries
    span = parts.span(problem, tile.keys, limit[0], first, tile.queries)

    def scope(q_mem, k_mem, v_mem, others, here, free, arrived, written, read):
        def load():
            plgpu.set_max_registers(hopper.LOADER_REGISTERS, action="decrease")
            kv_head = lax.div(h, i32(problem.heads_per_kv))
            streams = [(K, k, k_mem), (V, v, v_mem)]

            @pl.loop(0, span.steps)
            def _(j):
                for which, source, memory in streams:
                    for w in range(HALVES):
                        pl.when(j > 0)(functools.partial(plgpu.barrier_wait, free.at[which + w]))
                        block = (b, pl.ds(j * tile.keys, tile.keys), kv_head, pl.ds(w * half, half))
                        plgpu.copy_gmem_to_smem(source.at[block], memory.at[w], here.at[which + w])

            # Every arrival is waited for, or the interpreter of JAX 0.11 objects.
            for barrier in range(2 * HALVES):
                plgpu.barrier_wait(free.at[barrier])

        def compute():
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            mine = q_mem.at[me]
            rows = pl.ds(first, ROWS)
            plgpu.copy_gmem_to_smem(q.at[b, rows, h, pl.ds(me * half, half)], mine, arrived.at[me])
            plgpu.barrier_wait(arrived.at[me])

            def step(j, state):
                plgpu.barrier_wait(here.at[K + me])
                scores = parts.scores_of(mine, k_mem.at[me])
                plgpu.barrier_arrive(free.at[K + me])
                # The other has read the last ones before these take their place.
                pl.when(j > 0)(functools.partial(plgpu.barrier_wait, read))
                pieces = [scores[:, x : x + CHUNK] for x in range(0, tile.keys, CHUNK)]
                for x, piece in enumerate(pieces):
                    others[me, x] = piece
                plgpu.barrier_arrive(written)
                plgpu.barrier_wait(written)
                # Piece by piece, or more registers than there are would be on their way at a time.
                for x in range(len(pieces)):
                    pieces[x] += plgpu.load(others.at[1 - me, x], layout=parts.SCORES)
                    pieces = list(lax.optimization_barrier(tuple(pieces)))
                scores = jnp.concatenate(pieces, axis=1)
                plgpu.barrier_arrive(read)
                scores = parts.mask(scores, problem, span, j, tile.keys, first)
                state, p = parts.soften(state, scores, problem.scale)
                plgpu.barrier_wait(here.at[V + me])
                state = parts.add_values(state, p, v_mem.at[me], problem)
                plgpu.barrier_arrive(free.at[V + me])
                return state

            state = parts.empty_state(half)
            state = lax.fori_loop(0, span.steps, step, state)
            # The exchange is over: its memory takes the output on its way to the carry. Copies may
            # write there once whoever read has said so to the copy engine too.
            plgpu.barrier_wait(read)
            plgpu.commit_smem()
            plgpu.barrier_arrive(written)
            plgpu.barrier_wait(written)
            parts.merge_into_carry(
                old, new, state, (b, h, rows), others.at[me, 0], arrived.at[me],
                first_column=me * half, writes_rows=me == 0,
            )  # fmt: skip

        pl.when(me == LOADER)(load)
        pl.when(me != LOADER)(compute)

    def inputs(rows: int):
        return plgpu.SMEM(
            (HALVES, rows, half), problem.dtype, transforms=hopper.transforms(problem.dtype)
        )

    pl.run_scoped(
        scope,
        inputs(ROWS),
        inputs(tile.keys),
        inputs(tile.keys),
        plgpu.SMEM(
            (HALVES, tile.keys // CHUNK, ROWS, CHUNK),
            "float32",
            transforms=hopper.transforms("float32"),
        ),
        plgpu.Barrier(num_barriers=2 * HALVES),
        plgpu.Barrier(num_barriers=2 * HALVES),
        plgpu.Barrier(num_barriers=HALVES),
        plgpu.Barrier(num_arrivals=HALVES),
        plgpu.Barrier(num_arrivals=HALVES),
        collective_axes="warpgroup",
    )
