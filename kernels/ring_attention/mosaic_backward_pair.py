"""The backward kernel whose two consumer warpgroups share 64 fixed rows: results fill both.

The first computes S and P, the second dP and dS, and receives P through shared memory. With two
results (dv and dk) each then computes one: the first P by d_out, the second dS by q. With one
result the second returns dS in P's place, and each computes half of the columns.
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
    ring_barriers,
)
from parallax.kernels.ring_attention.mosaic_parts import SCORES, Problem

PRODUCER = 2


def kernel(*arrays, problem: Problem, cut: Pass, q_length: int):
    """The body of one thread block; arguments are arrays in device memory."""
    block = block_of(arrays, problem, cut, q_length)
    walk, b, h, warpgroup = block.walk, block.b, block.h, lax.axis_index("warpgroup")
    rows = pl.ds(block.first, ROWS)
    halves = len(cut.makes) == 1
    # Arrays are in pieces of columns: moving_1 like the results, moving_2 as it is loaded.
    chunk = cut.chunk or problem.width
    pieces, chunks = problem.width // WIDE, problem.width // chunk
    stages_1, stages_2 = cut.stages[0] * pieces, cut.stages[1]

    def scope(
        fixed_1, fixed_2, fixed_full, sums_mem, exchange, p_ready, p_read,
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

                def first(c, stage):
                    at = (b, moving, head, pl.ds(c * WIDE, WIDE))
                    yield block.moving[0].at[at], memory_1.at[stage]
                    for x, values in enumerate(block.sums if cut.keys_fixed else ()):
                        # With each piece, so that each has the same number of copies.
                        yield values.at[b, head, moving], sums_mem.at[x, stage]

                def second(c, stage):
                    at = (b, moving, head, pl.ds(c * chunk, chunk))
                    yield block.moving[1].at[at], memory_2.at[stage]

                for c in range(chunks):
                    copies = functools.partial(second, c)
                    ring_2.fill(step * chunks + c, copies, cut.cluster)
                    # Copies of what fits of moving_2 start before this waits for the last block.
                    if c == min(stages_2, chunks) - 1:
                        for x in range(pieces):
                            copies = functools.partial(first, x)
                            ring_1.fill(step * pieces + x, copies, cut.cluster)

            ring_1.drain(walk.steps * pieces)
            ring_2.drain(walk.steps * chunks)

        def fetch(x, memory):
            """Load the fixed rows of one array, in its pieces."""
            count, _, width = memory.shape
            for c in range(count):
                source = block.fixed[x].at[b, rows, h, pl.ds(c * width, width)]
                plgpu.copy_gmem_to_smem(source, memory.at[c], fixed_full[x])
            plgpu.barrier_wait(fixed_full[x])

        def sums_of_queries(x):
            """Return a function from a stage to lse or delta."""
            if cut.keys_fixed:
                return lambda stage: block_math.columns_of(sums_mem.at[x, stage])
            row_sums = block_math.rows_of(block.sums[x], (b, h, rows))
            return lambda stage: row_sums

        def hand_over(scores):
            for x in range(0, cut.moving, CHUNK):
                exchange[x // CHUNK] = scores[:, x : x + CHUNK]

        def receive():
            pieces_of_p = [
                plgpu.load(exchange.at[x], layout=SCORES) for x in range(cut.moving // CHUNK)
            ]
            return jnp.concatenate(pieces_of_p, axis=1)

        def first_warpgroup():
            """Compute S and P; then P by d_out, or dS by half of moving_1."""
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            fetch(0, fixed_1)
            lse = sums_of_queries(0)

            def step(t, accs):
                scores = block_math.product_of_ring(fixed_1, ring_1, t, keep=True)
                scores = block_math.hide(scores, walk, block.first, walk.at(t)[1])
                number = t * pieces
                p = block_math.weights(scores, lse(ring_1.slot(number)), walk)
                if halves:
                    ring_1.release(number + 1, loaded=cut.keys_fixed)
                    hand_over(p)
                    plgpu.barrier_arrive(p_ready)
                    plgpu.barrier_wait(p_read)
                    operand = memory_1.at[ring_1.slot(number)]
                    accs = block_math.accumulate(accs, [(receive, operand)], problem)
                    ring_1.release(number)
                    return accs
                ring_1.release(number, loaded=cut.keys_fixed)

                # The other warpgroup has read the last P before this one overwrites it.
                @pl.when(t > 0)
                def _():
                    plgpu.barrier_wait(p_read)

                hand_over(p)
                plgpu.barrier_arrive(p_ready)
                moving_2 = memory_2.at[ring_2.wait(t)]
                accs = block_math.accumulate(accs, [(lambda: p, moving_2)], problem)
                ring_2.release(t)
                return accs

            (acc,) = lax.fori_loop(0, walk.steps, step, (block_math.zeros(WIDE),))
            if not halves:
                plgpu.barrier_wait(p_read)
            block.results[cut.makes[0]][b, rows, h, pl.ds(0, WIDE)] = acc

        def second_warpgroup():
            """Compute dP and dS; then dS by moving_1, or by half of it."""
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            fetch(1, fixed_2)
            delta = sums_of_queries(1)

            def step(t, accs):
                dp = block_math.product_of_ring(fixed_2, ring_2, t)
                number = t * pieces
                stage = ring_1.wait(number)
                plgpu.barrier_wait(p_ready)
                ds = block_math.gradient(receive(), dp, delta(stage), walk)
                if halves:
                    hand_over(ds)
                    plgpu.barrier_arrive(p_read)
                    ring_1.release(number, loaded=cut.keys_fixed)
                    number += 1
                    stage = ring_1.wait(number)
                else:
                    plgpu.barrier_arrive(p_read)
                operand = memory_1.at[stage]
                accs = block_math.accumulate(accs, [(lambda: ds, operand)], problem)
                ring_1.release(number, loaded=cut.keys_fixed and not halves)
                return accs

            (acc,) = lax.fori_loop(0, walk.steps, step, (block_math.zeros(WIDE),))
            block.results[cut.makes[-1]][b, rows, h, pl.ds(WIDE * halves, WIDE)] = acc

        pl.when(warpgroup == PRODUCER)(load)
        pl.when(warpgroup == 0)(first_warpgroup)
        pl.when(warpgroup == 1)(second_warpgroup)

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
        ring_barriers(stages_1, copies_1, readers=2, cluster=cut.cluster),
        inputs(stages_2, cut.moving, chunk),
        ring_barriers(stages_2, 1, readers=1 if halves else 2, cluster=cut.cluster),
        collective_axes="warpgroup",
    )
