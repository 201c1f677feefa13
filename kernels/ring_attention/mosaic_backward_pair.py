"""Backward, both computing warpgroups with the same 64 fixed rows: their results fill both.

The first makes S and P, the second dP and dS, and P goes to it through shared memory. With two
results (dk and dv) each then has one: the first P by d_out, the second dS by q. With one result the
second hands dS back in P's place, and each has half of the columns.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.hopper import i32
from parallax.kernels.ring_attention import mosaic_backward_parts as parts
from parallax.kernels.ring_attention.backward_tiles import CHUNK, Pass
from parallax.kernels.ring_attention.mosaic_parts import SCORES, Problem
from parallax.kernels.ring_attention.tiles import ROWS

LOADER = 2
# Columns of a computing warpgroup's result.
WIDE = 256


def kernel(*arrays, problem: Problem, cut: Pass, q_length: int):
    """Body of one block of threads; arguments are arrays in device memory."""
    given = parts.operands(cut, arrays[:7])
    results = arrays[7:]
    halves = len(results) == 1
    b, h, me = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("warpgroup")
    place = lax.axis_index("rows")
    if problem.is_causal and not cut.keys_fixed:  # the rows with the most work first
        place = lax.axis_size("rows") - 1 - place
    first = place * cut.fixed
    rows = pl.ds(first, ROWS)
    walk = parts.walk(problem, cut, given.limit[0], h, first, q_length)
    vectors = (given.lse, given.delta) if cut.keys_fixed else ()
    # Arrays lie in pieces of columns: moving_1 as results do, moving_2 as it is loaded.
    chunk = cut.chunk or problem.width
    pieces, chunks = problem.width // WIDE, problem.width // chunk
    stages_1, stages_2 = cut.stages

    def scope(
        fixed_1, fixed_2, memory_1, memory_2, vector_mem, exchange,
        fixed_1_here, fixed_2_here, here_1, here_2, free_1, free_2, asked, answered,
    ):  # fmt: skip
        def load():
            plgpu.set_max_registers(hopper.LOADER_REGISTERS, action="decrease")

            @pl.loop(0, walk.steps)
            def _(step):
                head, row = walk.at(step)
                block = pl.ds(row, cut.moving)

                def load_1():
                    slot = parts.slot_of(step, stages_1)
                    pl.when(step >= stages_1)(
                        functools.partial(plgpu.barrier_wait, free_1.at[slot])
                    )
                    for c in range(pieces):
                        source = given.moving[0].at[b, block, head, pl.ds(c * WIDE, WIDE)]
                        plgpu.copy_gmem_to_smem(
                            source, memory_1.at[slot * pieces + c], here_1.at[slot]
                        )
                    for x, vector in enumerate(vectors):
                        source = vector.at[b, head, block]
                        plgpu.copy_gmem_to_smem(source, vector_mem.at[x, slot], here_1.at[slot])

                for c in range(chunks):
                    turn = step * chunks + c
                    slot = parts.slot_of(turn, stages_2)
                    pl.when(turn >= stages_2)(
                        functools.partial(plgpu.barrier_wait, free_2.at[slot])
                    )
                    source = given.moving[1].at[b, block, head, pl.ds(c * chunk, chunk)]
                    plgpu.copy_gmem_to_smem(source, memory_2.at[slot], here_2.at[slot])
                    # What fits of moving_2 is on its way before this waits for the last block.
                    if c == min(stages_2, chunks) - 1:
                        load_1()

            # Every arrival is waited for, or the interpreter of JAX 0.11 objects.
            for turns, stages, free in (
                (walk.steps, stages_1, free_1),
                (walk.steps * chunks, stages_2, free_2),
            ):

                @pl.loop(lax.max(turns - stages, i32(0)), turns)
                def _(turn, stages=stages, free=free):
                    plgpu.barrier_wait(free.at[parts.slot_of(turn, stages)])

        def of_queries(x, slot):
            if cut.keys_fixed:
                return parts.columns_of(vector_mem.at[x, slot])
            return None

        def fetch(source, memory, here):
            count, _, width = memory.shape
            for c in range(count):
                columns = pl.ds(c * width, width)
                plgpu.copy_gmem_to_smem(source.at[b, rows, h, columns], memory.at[c], here)
            plgpu.barrier_wait(here)

        def my_piece(slot):
            """Of moving_1: what meets the columns of this warpgroup's result."""
            return memory_1.at[slot * pieces + me if halves else slot]

        def hand_over(block):
            for x in range(0, cut.moving, CHUNK):
                exchange[x // CHUNK] = block[:, x : x + CHUNK]

        def receive():
            found = [plgpu.load(exchange.at[x], layout=SCORES) for x in range(cut.moving // CHUNK)]
            return found[0] if len(found) == 1 else jnp.concatenate(found, axis=1)

        def first_half():
            """S, P, and P by d_out or dS by half of the columns."""
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            fetch(given.fixed[0], fixed_1, fixed_1_here)
            lse_rows = None if cut.keys_fixed else parts.rows_of(given.lse, (b, h, rows))

            def step(t, acc):
                slot = parts.slot_of(t, stages_1)
                plgpu.barrier_wait(here_1.at[slot])
                scores = parts.product(
                    *(
                        (fixed_1.at[c + parts.nought(t)], memory_1.at[slot * pieces + c])
                        for c in range(pieces)
                    )
                )
                lse = of_queries(0, slot) if lse_rows is None else lse_rows
                p = parts.weights(scores, lse, walk, first, walk.at(t)[1])
                if not halves:
                    plgpu.barrier_arrive(free_1.at[slot])
                    pl.when(t > 0)(functools.partial(plgpu.barrier_wait, answered))
                hand_over(p)
                plgpu.barrier_arrive(asked)
                if halves:
                    plgpu.barrier_wait(answered)
                    acc = parts.accumulate(acc, receive(), my_piece(slot), problem)
                    plgpu.barrier_arrive(free_1.at[slot])
                else:
                    slot = parts.slot_of(t, stages_2)
                    plgpu.barrier_wait(here_2.at[slot])
                    acc = parts.accumulate(acc, p, memory_2.at[slot], problem)
                    plgpu.barrier_arrive(free_2.at[slot])
                return acc

            acc = lax.fori_loop(0, walk.steps, step, parts.zeros(WIDE))
            if not halves:
                plgpu.barrier_wait(answered)
            results[-1][b, rows, h, pl.ds(0, WIDE)] = acc

        def second_half():
            """dP, dS, and dS by q or by the other half of the columns."""
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            fetch(given.fixed[1], fixed_2, fixed_2_here)
            delta_rows = None if cut.keys_fixed else parts.rows_of(given.delta, (b, h, rows))

            def step(t, acc):
                slot = parts.slot_of(t, stages_1)
                dp = parts.product_of_ring(fixed_2, memory_2, here_2, free_2, t, stages_2)
                plgpu.barrier_wait(here_1.at[slot])
                delta = of_queries(1, slot) if delta_rows is None else delta_rows
                plgpu.barrier_wait(asked)
                ds = parts.gradient(receive(), dp, delta, walk)
                if halves:
                    hand_over(ds)
                plgpu.barrier_arrive(answered)
                acc = parts.accumulate(acc, ds, my_piece(slot), problem)
                plgpu.barrier_arrive(free_1.at[slot])
                return acc

            acc = lax.fori_loop(0, walk.steps, step, parts.zeros(WIDE))
            results[0][b, rows, h, pl.ds(WIDE * halves, WIDE)] = acc

        pl.when(me == LOADER)(load)
        pl.when(me == 0)(first_half)
        pl.when(me == 1)(second_half)

    def inputs(*shape: int):
        return plgpu.SMEM(shape, problem.dtype, transforms=hopper.transforms(problem.dtype))

    pl.run_scoped(
        scope,
        inputs(pieces, ROWS, WIDE),
        inputs(chunks, ROWS, chunk),
        inputs(stages_1 * pieces, cut.moving, WIDE),
        inputs(stages_2, cut.moving, chunk),
        plgpu.SMEM((2 if vectors else 1, stages_1, cut.moving), "float32"),
        plgpu.SMEM(
            (cut.moving // CHUNK, ROWS, CHUNK), "float32", transforms=hopper.transforms("float32")
        ),
        plgpu.Barrier(num_arrivals=pieces),
        plgpu.Barrier(num_arrivals=chunks),
        plgpu.Barrier(num_barriers=stages_1, num_arrivals=pieces + len(vectors)),
        plgpu.Barrier(num_barriers=stages_2),
        plgpu.Barrier(num_barriers=stages_1, num_arrivals=2),
        plgpu.Barrier(num_barriers=stages_2, num_arrivals=1 if halves else 2),
        plgpu.Barrier(),
        plgpu.Barrier(),
        collective_axes="warpgroup",
    )
