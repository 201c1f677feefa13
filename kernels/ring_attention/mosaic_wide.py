"""The forward kernel for head dim 512: both consumer warpgroups share 64 queries.

Warpgroup w has half w of the columns of Q, K, V and the output. It multiplies its half of head_dim,
passes its partial scores to the other through shared memory, and adds the other's; from there on
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
from parallax.kernels.ring_attention.mosaic_carry import WARPGROUPS, Carries, CarryTile
from parallax.kernels.ring_attention.mosaic_loop import Blocks, walk, walk_ahead
from parallax.kernels.ring_attention.mosaic_parts import Problem
from parallax.kernels.ring_attention.tiles import CHUNK, Tile

PRODUCER = WARPGROUPS


def kernel(q, k, v, o, m, l, limit, o_new, m_new, l_new, *, problem: Problem, tile: Tile):
    """The body of one thread block; arguments are arrays in device memory."""
    old, new = Carries(o, m, l), Carries(o_new, m_new, l_new)
    half = problem.width // WARPGROUPS
    warpgroup = lax.axis_index("warpgroup")

    def carry_tile_of(work, warpgroup) -> CarryTile:
        return CarryTile(work.batch, work.head, work.first_row, warpgroup * half, half)

    def scope(
        q_mem, k_union, v_union, exchange, q_full, k_full, v_full, k_empty, v_empty, o_full,
        ml_full, written, read,
    ):  # fmt: skip
        (k_mem, o_first), (v_mem, o_second), (partial_scores, ml_mem) = k_union, v_union, exchange

        def load():
            plgpu.set_max_registers(hopper.LOADER_REGISTERS, action="decrease")
            work = parts.block_work(problem, tile, limit[0])

            def fetch(j, source, memory, full, empty):
                for w in range(WARPGROUPS):
                    pl.when(j > 0)(functools.partial(plgpu.barrier_wait, empty.at[w]))
                    keys, columns = pl.ds(j * tile.keys, tile.keys), pl.ds(w * half, half)
                    plgpu.copy_gmem_to_smem(
                        source.at[work.batch, keys, work.kv_head, columns], memory.at[w],
                        full.at[w], **parts.multicast(tile),
                    )  # fmt: skip

            def prefetch():
                for w in range(WARPGROUPS):
                    carry.prefetch(old, carry_tile_of(work, w))

            parts.fetch_in_order(
                work.steps, tile, lambda j: fetch(j, k, k_mem, k_full, k_empty),
                lambda j: fetch(j, v, v_mem, v_full, v_empty), prefetch,
            )  # fmt: skip

            for which, (empty, memory) in enumerate(((k_empty, o_first), (v_empty, o_second))):
                # In a cluster the other blocks arrive at this barrier too: none may exit before.
                for w in range(WARPGROUPS):
                    plgpu.barrier_wait(empty.at[w])
                for w in range(WARPGROUPS):
                    carry.load(old, carry_tile_of(work, w), which, w, memory, o_full)

        def compute():
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            work = parts.block_work(problem, tile, limit[0])
            rows = pl.ds(work.first_row, ROWS)
            plgpu.copy_gmem_to_smem(
                q.at[work.batch, rows, work.head, pl.ds(warpgroup * half, half)],
                q_mem.at[warpgroup],
                q_full.at[warpgroup],
            )  # fmt: skip
            state = carry.start(
                old, carry_tile_of(work, warpgroup), ml_mem.at[0], ml_full.at[0], warpgroup == 0
            )
            plgpu.barrier_arrive(read)
            plgpu.barrier_wait(q_full.at[warpgroup])

            def multiply(j, out):
                plgpu.barrier_wait(k_full.at[warpgroup])
                # The compiler cannot see through `again`: with `warpgroup` it would compute all
                # descriptors of the operands before the loop, and keep 27 registers for them.
                again = lax.optimization_barrier(warpgroup)
                plgpu.wgmma(out, q_mem.at[again], k_mem.at[again].transpose((1, 0)))

            def scores(j, product):
                plgpu.barrier_arrive(k_empty.at[warpgroup])
                partial_scores[warpgroup] = product
                plgpu.barrier_arrive(written)
                plgpu.barrier_wait(written)
                pieces = [product[:, x : x + CHUNK] for x in range(0, tile.keys, CHUNK)]
                # Piece by piece: loading all at once would take more registers than there are.
                for x in range(len(pieces)):
                    theirs = partial_scores.at[1 - warpgroup, :, pl.ds(x * CHUNK, CHUNK)]
                    pieces[x] += plgpu.load(theirs, layout=parts.SCORES)
                    pieces = list(lax.optimization_barrier(tuple(pieces)))
                plgpu.barrier_arrive(read)
                whole = jnp.concatenate(pieces, axis=1)
                return parts.mask(whole, problem, work.limit, j, work.first_row)

            def values(j):
                plgpu.barrier_wait(v_full.at[warpgroup])
                return v_mem.at[lax.optimization_barrier(warpgroup)]

            def release(j):
                plgpu.barrier_arrive(v_empty.at[warpgroup])

            def prepare(j):
                # The other warpgroup has read these scores (at first, the carry's m and l) before
                # the next ones overwrite them.
                plgpu.barrier_wait(read)

            def no_turn():
                pass

            blocks = Blocks(tile.keys, multiply, scores, values, release, prepare, no_turn, no_turn)
            added = (walk_ahead if tile.ahead else walk)(blocks, work.steps, state, problem)
            carry.add_and_store(
                new, carry_tile_of(work, warpgroup), added, state.m, warpgroup, (o_first, o_second),
                o_full, ml_mem.at[0], copies_rows=warpgroup == 0,
            )  # fmt: skip

        pl.when(warpgroup == PRODUCER)(load)
        pl.when(warpgroup != PRODUCER)(compute)

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
