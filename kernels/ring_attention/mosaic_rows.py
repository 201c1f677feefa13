"""Head dims up to 256: each computing warpgroup has 64 queries and all of their output."""

import functools

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.chip import ROWS
from parallax.kernels.hopper import i32
from parallax.kernels.ring_attention import mosaic_carry as carry
from parallax.kernels.ring_attention import mosaic_parts as parts
from parallax.kernels.ring_attention.mosaic_carry import WARPGROUPS, Carries, Place
from parallax.kernels.ring_attention.mosaic_loop import Blocks, walk, walk_ahead
from parallax.kernels.ring_attention.mosaic_parts import Problem
from parallax.kernels.ring_attention.tiles import Tile

LOADER = WARPGROUPS


def kernel(q, k, v, o, m, l, limit, o_new, m_new, l_new, *, problem: Problem, tile: Tile):
    """Body of one block of threads; arguments are arrays in device memory."""
    old, new, stages = Carries(o, m, l), Carries(o_new, m_new, l_new), tile.stages
    me = lax.axis_index("warpgroup")

    def place(here, warpgroup) -> Place:
        row = here.first_row + warpgroup * ROWS
        return Place(here.batch, here.head, row, 0, problem.width)

    def scope(
        q_mem, k_union, v_union, ml_mem, q_here, k_here, v_here, k_free, v_free, o_here, ml_here,
        turn,
    ):  # fmt: skip
        (k_mem, o_first), (v_mem, o_second) = k_union, v_union

        def load():
            plgpu.set_max_registers(hopper.LOADER_REGISTERS, action="decrease")
            here = parts.here(problem, tile, limit[0])

            def fetch(j, source, memory, arrived, free):
                slot = lax.rem(j, i32(stages))
                pl.when(j >= stages)(functools.partial(plgpu.barrier_wait, free.at[slot]))
                keys = (here.batch, pl.ds(j * tile.keys, tile.keys), here.kv_head)
                plgpu.copy_gmem_to_smem(
                    source.at[keys], memory.at[slot], arrived.at[slot], **parts.multicast(tile)
                )

            def prefetch():
                for w in range(WARPGROUPS):
                    carry.prefetch(old, place(here, w))

            parts.in_order(
                here.steps, tile, lambda j: fetch(j, k, k_mem, k_here, k_free),
                lambda j: fetch(j, v, v_mem, v_here, v_free), prefetch,
            )  # fmt: skip
            for half, (free, memory) in enumerate(((k_free, o_first), (v_free, o_second))):
                # In a cluster the others arrive here too: none may leave before.
                @pl.loop(lax.max(here.steps - stages, i32(0)), here.steps)
                def _(j, free=free):
                    plgpu.barrier_wait(free.at[lax.rem(j, i32(stages))])

                for warpgroup in range(WARPGROUPS):
                    carry.load(old, place(here, warpgroup), half, warpgroup, memory, o_here)

        def compute():
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            here = parts.here(problem, tile, limit[0])
            mine = place(here, me)
            plgpu.copy_gmem_to_smem(
                q.at[here.batch, pl.ds(mine.row, ROWS), here.head], q_mem.at[me], q_here.at[me]
            )
            state = carry.start(old, mine, ml_mem.at[me], ml_here.at[me])
            plgpu.barrier_wait(q_here.at[me])

            def multiply(j, out):
                slot = lax.rem(j, i32(stages))
                plgpu.wgmma(out, q_mem.at[me], k_mem.at[slot].transpose((1, 0)))

            def scores(j, product):
                plgpu.barrier_arrive(k_free.at[lax.rem(j, i32(stages))])
                return parts.mask(product, problem, here.limit, j, mine.row)

            def values(j):
                slot = lax.rem(j, i32(stages))
                plgpu.barrier_wait(v_here.at[slot])
                return v_mem.at[slot]

            def free(j):
                plgpu.barrier_arrive(v_free.at[lax.rem(j, i32(stages))])

            def prepare(j):
                def wait():
                    plgpu.barrier_wait(k_here.at[lax.rem(i32(j + 1), i32(stages))])

                pl.when(j + 1 < here.steps)(wait)

            def take_turn():
                if tile.turns:
                    plgpu.barrier_wait(turn.at[me])

            def pass_turn():
                if tile.turns:
                    plgpu.barrier_arrive(turn.at[1 - me])

            blocks = Blocks(
                tile.keys, multiply, scores, values, free, prepare, take_turn, pass_turn
            )
            # The first turn is that of 0, who also ends the last one of 1.
            pl.when(me == 1)(take_turn)
            added = (walk_ahead if tile.ahead else walk)(blocks, here.steps, state, problem)
            pl.when(me == 0)(pass_turn)
            carry.add_and_store(
                new, mine, added, state.m, me, (o_first, o_second), o_here, ml_mem.at[me]
            )

        pl.when(me == LOADER)(load)
        pl.when(me != LOADER)(compute)

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
