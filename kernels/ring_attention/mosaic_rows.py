"""The forward kernel for head dims up to 256: 64 queries per consumer warpgroup, all output."""

import functools

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.chip import ROWS
from parallax.kernels.hopper import i32
from parallax.kernels.ring_attention import mosaic_carry as carry
from parallax.kernels.ring_attention import mosaic_parts as parts
from parallax.kernels.ring_attention.mosaic_carry import WARPGROUPS, Carries, CarryTile
from parallax.kernels.ring_attention.mosaic_loop import Blocks, walk, walk_ahead
from parallax.kernels.ring_attention.mosaic_parts import Problem
from parallax.kernels.ring_attention.tiles import Tile

PRODUCER = WARPGROUPS


def kernel(q, k, v, o, m, l, limit, o_new, m_new, l_new, *, problem: Problem, tile: Tile):
    """The body of one thread block; arguments are arrays in device memory."""
    old, new, stages = Carries(o, m, l), Carries(o_new, m_new, l_new), tile.stages
    warpgroup = lax.axis_index("warpgroup")

    def carry_tile_of(work, warpgroup) -> CarryTile:
        row = work.first_row + warpgroup * ROWS
        return CarryTile(work.batch, work.head, row, 0, problem.width)

    def scope(
        q_mem, k_union, v_union, ml_mem, q_full, k_full, v_full, k_empty, v_empty, o_full, ml_full,
        turn_barrier,
    ):  # fmt: skip
        (k_mem, o_first), (v_mem, o_second) = k_union, v_union

        def load():
            plgpu.set_max_registers(hopper.LOADER_REGISTERS, action="decrease")
            work = parts.block_work(problem, tile, limit[0])

            def fetch(j, source, memory, full, empty):
                stage = lax.rem(j, i32(stages))
                pl.when(j >= stages)(functools.partial(plgpu.barrier_wait, empty.at[stage]))
                keys = (work.batch, pl.ds(j * tile.keys, tile.keys), work.kv_head)
                plgpu.copy_gmem_to_smem(
                    source.at[keys], memory.at[stage], full.at[stage], **parts.multicast(tile)
                )

            def prefetch():
                for w in range(WARPGROUPS):
                    carry.prefetch(old, carry_tile_of(work, w))

            parts.fetch_in_order(
                work.steps, tile, lambda j: fetch(j, k, k_mem, k_full, k_empty),
                lambda j: fetch(j, v, v_mem, v_full, v_empty), prefetch,
            )  # fmt: skip
            for half, (empty, memory) in enumerate(((k_empty, o_first), (v_empty, o_second))):
                # In a cluster the other blocks arrive at this barrier too: none may exit before.
                @pl.loop(lax.max(work.steps - stages, i32(0)), work.steps)
                def _(j, empty=empty):
                    plgpu.barrier_wait(empty.at[lax.rem(j, i32(stages))])

                for warpgroup in range(WARPGROUPS):
                    carry.load(old, carry_tile_of(work, warpgroup), half, warpgroup, memory, o_full)

        def compute():
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            work = parts.block_work(problem, tile, limit[0])
            own = carry_tile_of(work, warpgroup)
            plgpu.copy_gmem_to_smem(
                q.at[work.batch, pl.ds(own.row, ROWS), work.head],
                q_mem.at[warpgroup],
                q_full.at[warpgroup],
            )
            state = carry.start(old, own, ml_mem.at[warpgroup], ml_full.at[warpgroup])
            plgpu.barrier_wait(q_full.at[warpgroup])

            def multiply(j, out):
                stage = lax.rem(j, i32(stages))
                plgpu.wgmma(out, q_mem.at[warpgroup], k_mem.at[stage].transpose((1, 0)))

            def scores(j, product):
                plgpu.barrier_arrive(k_empty.at[lax.rem(j, i32(stages))])
                return parts.mask(product, problem, work.limit, j, own.row)

            def values(j):
                stage = lax.rem(j, i32(stages))
                plgpu.barrier_wait(v_full.at[stage])
                return v_mem.at[stage]

            def release(j):
                plgpu.barrier_arrive(v_empty.at[lax.rem(j, i32(stages))])

            def prepare(j):
                def wait():
                    plgpu.barrier_wait(k_full.at[lax.rem(i32(j + 1), i32(stages))])

                pl.when(j + 1 < work.steps)(wait)

            def take_turn():
                if tile.turns:
                    plgpu.barrier_wait(turn_barrier.at[warpgroup])

            def pass_turn():
                if tile.turns:
                    plgpu.barrier_arrive(turn_barrier.at[1 - warpgroup])

            blocks = Blocks(
                tile.keys, multiply, scores, values, release, prepare, take_turn, pass_turn
            )
            # Warpgroup 0 has the first turn, and also ends the last one of 1.
            pl.when(warpgroup == 1)(take_turn)
            added = (walk_ahead if tile.ahead else walk)(blocks, work.steps, state, problem)
            pl.when(warpgroup == 0)(pass_turn)
            carry.add_and_store(
                new,
                own,
                added,
                state.m,
                warpgroup,
                (o_first, o_second),
                o_full,
                ml_mem.at[warpgroup],
            )

        pl.when(warpgroup == PRODUCER)(load)
        pl.when(warpgroup != PRODUCER)(compute)

    def inputs(count: int, rows: int):
        return plgpu.SMEM(
            (count, rows, problem.width), problem.dtype, transforms=hopper.transforms(problem.dtype)
        )

    def reused():
        return plgpu.RefUnion(inputs(stages, tile.keys), carry.memory(problem.width))

    pl.run_scoped(
        scope,
        inputs(WARPGROUPS, ROWS),
        reused(),
        reused(),
        carry.rows_memory(WARPGROUPS),
        plgpu.Barrier(num_barriers=WARPGROUPS),
        plgpu.Barrier(num_barriers=stages),
        plgpu.Barrier(num_barriers=stages),
        parts.free_barriers(tile, WARPGROUPS, stages),
        parts.free_barriers(tile, WARPGROUPS, stages),
        carry.barriers(problem.width),
        carry.rows_barriers(WARPGROUPS),
        plgpu.Barrier(num_barriers=WARPGROUPS),
        collective_axes="warpgroup",
    )
