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
from parallax.kernels.chip import ROWS
from parallax.kernels.ring_attention import mosaic_carry as carry
from parallax.kernels.ring_attention import mosaic_parts as parts
from parallax.kernels.ring_attention.mosaic_carry import WARPGROUPS, Carries, Place
from parallax.kernels.ring_attention.mosaic_loop import Blocks, walk, walk_ahead
from parallax.kernels.ring_attention.mosaic_parts import Problem
from parallax.kernels.ring_attention.tiles import CHUNK, Tile

LOADER = WARPGROUPS


def kernel(q, k, v, o, m, l, limit, o_new, m_new, l_new, *, problem: Problem, tile: Tile):
    """Body of one block of threads; arguments are arrays in device memory."""
    old, new = Carries(o, m, l), Carries(o_new, m_new, l_new)
    half = problem.width // WARPGROUPS
    me = lax.axis_index("warpgroup")

    def place(here, warpgroup) -> Place:
        return Place(here.batch, here.head, here.first_row, warpgroup * half, half)

    def scope(
        q_mem, k_union, v_union, exchange, q_here, k_here, v_here, k_free, v_free, o_here,
        ml_here, written, read,
    ):  # fmt: skip
        (k_mem, o_first), (v_mem, o_second), (others, ml_mem) = k_union, v_union, exchange

        def load():
            plgpu.set_max_registers(hopper.LOADER_REGISTERS, action="decrease")
            here = parts.here(problem, tile, limit[0])

            def fetch(j, source, memory, arrived, free):
                for w in range(WARPGROUPS):
                    pl.when(j > 0)(functools.partial(plgpu.barrier_wait, free.at[w]))
                    keys, columns = pl.ds(j * tile.keys, tile.keys), pl.ds(w * half, half)
                    plgpu.copy_gmem_to_smem(
                        source.at[here.batch, keys, here.kv_head, columns], memory.at[w],
                        arrived.at[w], **parts.multicast(tile),
                    )  # fmt: skip

            def prefetch():
                for w in range(WARPGROUPS):
                    carry.prefetch(old, place(here, w))

            parts.in_order(
                here.steps, tile, lambda j: fetch(j, k, k_mem, k_here, k_free),
                lambda j: fetch(j, v, v_mem, v_here, v_free), prefetch,
            )  # fmt: skip

            for which, (free, memory) in enumerate(((k_free, o_first), (v_free, o_second))):
                # In a cluster the others arrive here too: none may leave before.
                for w in range(WARPGROUPS):
                    plgpu.barrier_wait(free.at[w])
                for w in range(WARPGROUPS):
                    carry.load(old, place(here, w), which, w, memory, o_here)

        def compute():
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            here = parts.here(problem, tile, limit[0])
            rows = pl.ds(here.first_row, ROWS)
            plgpu.copy_gmem_to_smem(
                q.at[here.batch, rows, here.head, pl.ds(me * half, half)], q_mem.at[me],
                q_here.at[me],
            )  # fmt: skip
            state = carry.start(old, place(here, me), ml_mem.at[0], ml_here.at[0], me == 0)
            plgpu.barrier_arrive(read)
            plgpu.barrier_wait(q_here.at[me])

            def multiply(j, out):
                plgpu.barrier_wait(k_here.at[me])
                # The compiler knows less of `again`: with `me` it would compute all descriptors
                # of the operands before the loop, and keep 27 registers for them.
                again = lax.optimization_barrier(me)
                plgpu.wgmma(out, q_mem.at[again], k_mem.at[again].transpose((1, 0)))

            def scores(j, product):
                plgpu.barrier_arrive(k_free.at[me])
                others[me] = product
                plgpu.barrier_arrive(written)
                plgpu.barrier_wait(written)
                pieces = [product[:, x : x + CHUNK] for x in range(0, tile.keys, CHUNK)]
                # Piece by piece, or more registers than there are would be on their way at a time.
                for x in range(len(pieces)):
                    theirs = others.at[1 - me, :, pl.ds(x * CHUNK, CHUNK)]
                    pieces[x] += plgpu.load(theirs, layout=parts.SCORES)
                    pieces = list(lax.optimization_barrier(tuple(pieces)))
                plgpu.barrier_arrive(read)
                whole = jnp.concatenate(pieces, axis=1)
                return parts.mask(whole, problem, here.limit, j, here.first_row)

            def values(j):
                plgpu.barrier_wait(v_here.at[me])
                return v_mem.at[lax.optimization_barrier(me)]

            def free(j):
                plgpu.barrier_arrive(v_free.at[me])

            def prepare(j):
                # The other has read these scores (at first, what the carry has of its rows) before
                # the next ones take their place.
                plgpu.barrier_wait(read)

            def no_turn():
                pass

            blocks = Blocks(tile.keys, multiply, scores, values, free, prepare, no_turn, no_turn)
            added = (walk_ahead if tile.ahead else walk)(blocks, here.steps, state, problem)
            carry.add_and_store(
                new, place(here, me), added, state.m, me, (o_first, o_second), o_here,
                ml_mem.at[0], copies_rows=me == 0,
            )  # fmt: skip

        pl.when(me == LOADER)(load)
        pl.when(me != LOADER)(compute)

    def inputs(rows: int):
        return plgpu.SMEM(
            (WARPGROUPS, rows, half), problem.dtype, transforms=hopper.transforms(problem.dtype)
        )

    def reused():
        return plgpu.RefUnion(inputs(tile.keys), carry.memory(half))

    pl.run_scoped(
        scope,
        inputs(ROWS),
        reused(),
        reused(),
        plgpu.RefUnion(
            plgpu.SMEM(
                (WARPGROUPS, ROWS, tile.keys), "float32", transforms=hopper.transforms("float32")
            ),
            carry.rows_memory(1),
        ),
        plgpu.Barrier(num_barriers=WARPGROUPS),
        plgpu.Barrier(num_barriers=WARPGROUPS),
        plgpu.Barrier(num_barriers=WARPGROUPS),
        parts.free_barriers(tile, 1, WARPGROUPS),
        parts.free_barriers(tile, 1, WARPGROUPS),
        carry.barriers(half),
        carry.rows_barriers(1),
        plgpu.Barrier(num_arrivals=WARPGROUPS),
        plgpu.Barrier(num_arrivals=WARPGROUPS),
        collective_axes="warpgroup",
    )
