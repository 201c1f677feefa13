"""Backward, both computing warpgroups with the same 64 fixed rows: their results fill both.

The first makes S and P, the second dP and dS, and P goes to it through shared memory. With two
results (dv and dk) each then has one: the first P by d_out, the second dS by q. With one result the
second hands dS back in P's place, and each has half of the columns.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.chip import ROWS
from parallax.kernels.ring_attention import mosaic_backward_math as block_math
from parallax.kernels.ring_attention.backward_tiles import CHUNK, WIDE, Pass
from parallax.kernels.ring_attention.mosaic_backward_parts import (
    Ring,
    block_of,
    rings_barriers,
)
from parallax.kernels.ring_attention.mosaic_parts import SCORES, Problem

LOADER = 2


def kernel(*arrays, problem: Problem, cut: Pass, q_length: int):
    """Body of one block of threads; arguments are arrays in device memory."""
    block = block_of(arrays, problem, cut, q_length)
    walk, b, h, me = block.walk, block.b, block.h, lax.axis_index("warpgroup")
    rows = pl.ds(block.first, ROWS)
    halves = len(cut.makes) == 1
    # Arrays lie in pieces of columns: moving_1 as results do, moving_2 as it is loaded.
    chunk = cut.chunk or problem.width
    pieces, chunks = problem.width // WIDE, problem.width // chunk
    stages_1, stages_2 = cut.stages[0] * pieces, cut.stages[1]

    def scope(
        fixed_1, fixed_2, fixed_here, sums_mem, exchange, asked, answered,
        memory_1, barriers_1, memory_2, barriers_2,
    ):  # fmt: skip
        ring_1 = Ring(memory_1, barriers_1[0], barriers_1[1], stages_1)
        ring_2 = Ring(memory_2, barriers_2[0], barriers_2[1], stages_2)

        def load():
            plgpu.set_max_registers(hopper.LOADER_REGISTERS, action="decrease")

            @pl.loop(0, walk.steps)
            def _(step):
                head, row = walk.at(step)
                moving = pl.ds(row, cut.moving)

                def first(c, slot):
                    at = (b, moving, head, pl.ds(c * WIDE, WIDE))
                    yield block.moving[0].at[at], memory_1.at[slot]
                    for x, values in enumerate(block.sums if cut.keys_fixed else ()):
                        # With each piece, so that each is of as many copies.
                        yield values.at[b, head, moving], sums_mem.at[x, slot]

                def second(c, slot):
                    at = (b, moving, head, pl.ds(c * chunk, chunk))
                    yield block.moving[1].at[at], memory_2.at[slot]

                for c in range(chunks):
                    copies = functools.partial(second, c)
                    ring_2.fill(step * chunks + c, copies, cut.cluster)
                    # What fits of moving_2 is on its way before this waits for the last block.
                    if c == min(stages_2, chunks) - 1:
                        for x in range(pieces):
                            copies = functools.partial(first, x)
                            ring_1.fill(step * pieces + x, copies, cut.cluster)

            ring_1.drain(walk.steps * pieces)
            ring_2.drain(walk.steps * chunks)

        def fetch(x, memory):
            """The fixed rows of one array, in its pieces."""
            count, _, width = memory.shape
            for c in range(count):
                source = block.fixed[x].at[b, rows, h, pl.ds(c * width, width)]
                plgpu.copy_gmem_to_smem(source, memory.at[c], fixed_here[x])
            plgpu.barrier_wait(fixed_here[x])

        def sums_of_queries(x):
            """A function of a slot: lse or delta."""
            if cut.keys_fixed:
                return lambda slot: block_math.columns_of(sums_mem.at[x, slot])
            of_rows = block_math.rows_of(block.sums[x], (b, h, rows))
            return lambda slot: of_rows

        def hand_over(scores):
            for x in range(0, cut.moving, CHUNK):
                exchange[x // CHUNK] = scores[:, x : x + CHUNK]

        def receive():
            found = [plgpu.load(exchange.at[x], layout=SCORES) for x in range(cut.moving // CHUNK)]
            return jnp.concatenate(found, axis=1)

        def first_warpgroup():
            """S and P; then P by d_out, or dS by half of moving_1."""
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            fetch(0, fixed_1)
            lse = sums_of_queries(0)

            def step(t, accs):
                scores = block_math.product_of_ring(fixed_1, ring_1, t, keep=True)
                scores = block_math.hide(scores, walk, block.first, walk.at(t)[1])
                turn = t * pieces
                p = block_math.weights(scores, lse(ring_1.slot(turn)), walk)
                if halves:
                    ring_1.release(turn + 1, loaded=cut.keys_fixed)
                    hand_over(p)
                    plgpu.barrier_arrive(asked)
                    plgpu.barrier_wait(answered)
                    mine = memory_1.at[ring_1.slot(turn)]
                    accs = block_math.accumulate(accs, [(receive, mine)], problem)
                    ring_1.release(turn)
                    return accs
                ring_1.release(turn, loaded=cut.keys_fixed)

                # The other has read the last P before this one takes its place.
                @pl.when(t > 0)
                def _():
                    plgpu.barrier_wait(answered)

                hand_over(p)
                plgpu.barrier_arrive(asked)
                moving_2 = memory_2.at[ring_2.wait(t)]
                accs = block_math.accumulate(accs, [(lambda: p, moving_2)], problem)
                ring_2.release(t)
                return accs

            (acc,) = lax.fori_loop(0, walk.steps, step, (block_math.zeros(WIDE),))
            if not halves:
                plgpu.barrier_wait(answered)
            block.results[cut.makes[0]][b, rows, h, pl.ds(0, WIDE)] = acc

        def second_warpgroup():
            """dP and dS; then dS by moving_1, or by half of it."""
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            fetch(1, fixed_2)
            delta = sums_of_queries(1)

            def step(t, accs):
                dp = block_math.product_of_ring(fixed_2, ring_2, t)
                turn = t * pieces
                slot = ring_1.wait(turn)
                plgpu.barrier_wait(asked)
                ds = block_math.gradient(receive(), dp, delta(slot), walk)
                if halves:
                    hand_over(ds)
                    plgpu.barrier_arrive(answered)
                    ring_1.release(turn, loaded=cut.keys_fixed)
                    turn += 1
                    slot = ring_1.wait(turn)
                else:
                    plgpu.barrier_arrive(answered)
                mine = memory_1.at[slot]
                accs = block_math.accumulate(accs, [(lambda: ds, mine)], problem)
                ring_1.release(turn, loaded=cut.keys_fixed and not halves)
                return accs

            (acc,) = lax.fori_loop(0, walk.steps, step, (block_math.zeros(WIDE),))
            block.results[cut.makes[-1]][b, rows, h, pl.ds(WIDE * halves, WIDE)] = acc

        pl.when(me == LOADER)(load)
        pl.when(me == 0)(first_warpgroup)
        pl.when(me == 1)(second_warpgroup)

    def inputs(*shape: int):
        return plgpu.SMEM(shape, problem.dtype, transforms=hopper.transforms(problem.dtype))

    floats = hopper.transforms("float32")
    copies_1 = 1 + (2 if cut.keys_fixed else 0)
    pl.run_scoped(
        scope,
        inputs(pieces, ROWS, WIDE),
        inputs(chunks, ROWS, chunk),
        (plgpu.Barrier(num_arrivals=pieces), plgpu.Barrier(num_arrivals=chunks)),
        plgpu.SMEM((2, stages_1, cut.moving), "float32"),
        plgpu.SMEM((cut.moving // CHUNK, ROWS, CHUNK), "float32", transforms=floats),
        plgpu.Barrier(),
        plgpu.Barrier(),
        inputs(stages_1, cut.moving, WIDE),
        rings_barriers(stages_1, copies_1, readers=2, cluster=cut.cluster),
        inputs(stages_2, cut.moving, chunk),
        rings_barriers(stages_2, 1, readers=1 if halves else 2, cluster=cut.cluster),
        collective_axes="warpgroup",
    )
