"""Backward, each computing warpgroup with 64 fixed rows and all of their results."""

import functools

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.hopper import i32
from parallax.kernels.ring_attention import mosaic_backward_parts as parts
from parallax.kernels.ring_attention.backward_tiles import Pass
from parallax.kernels.ring_attention.mosaic_parts import Problem
from parallax.kernels.ring_attention.tiles import ROWS

LOADER = 2


def kernel(*arrays, problem: Problem, cut: Pass, q_length: int):
    """Body of one block of threads; arguments are arrays in device memory."""
    given = parts.operands(cut, arrays[:7])
    results = dict(zip(cut.makes, arrays[7:], strict=True))
    b, h, me = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("warpgroup")
    place = lax.axis_index("rows")
    if problem.is_causal and not cut.keys_fixed:  # the rows with the most work first
        place = lax.axis_size("rows") - 1 - place
    first = place * cut.fixed
    walk = parts.walk(problem, cut, given.limit[0], h, first, q_length)
    needs_dp = cut.makes != ("dv",)
    vectors = (given.lse, given.delta)[: 1 + needs_dp] if cut.keys_fixed else ()
    columns = problem.width // cut.parts
    first_column = lax.axis_index("parts") * columns

    def scope(
        fixed_mem, memory_1, memory_2, vector_mem, fixed_here, here_1, here_2, free_1, free_2
    ):
        def load():
            plgpu.set_max_registers(hopper.LOADER_REGISTERS, action="decrease")

            @pl.loop(0, walk.steps)
            def _(step):
                head, row = walk.at(step)
                block = pl.ds(row, cut.moving)
                slots = tuple(parts.slot_of(step, stages) for stages in cut.stages)
                for which, (memory, here, free) in enumerate(
                    ((memory_1, here_1, free_1), (memory_2, here_2, free_2))
                ):
                    slot = slots[which]
                    pl.when(step >= cut.stages[which])(
                        functools.partial(plgpu.barrier_wait, free.at[slot])
                    )
                    source = given.moving[which].at[b, block, head]
                    if which:
                        source = given.moving[which].at[
                            b, block, head, pl.ds(first_column, columns)
                        ]
                    plgpu.copy_gmem_to_smem(source, memory.at[slot], here.at[slot])
                for x, vector in enumerate(vectors):
                    plgpu.copy_gmem_to_smem(
                        vector.at[b, head, block], vector_mem.at[x, slots[0]], here_1.at[slots[0]]
                    )

            # Every arrival is waited for, or the interpreter of JAX 0.11 objects.
            for stages, free in zip(cut.stages, (free_1, free_2), strict=True):

                @pl.loop(lax.max(walk.steps - stages, i32(0)), walk.steps)
                def _(step, stages=stages, free=free):
                    plgpu.barrier_wait(free.at[parts.slot_of(step, stages)])

        def compute():
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            mine = first + me * ROWS
            rows = pl.ds(mine, ROWS)
            for x, source in enumerate(given.fixed[: 1 + needs_dp]):
                plgpu.copy_gmem_to_smem(
                    source.at[b, rows, h], fixed_mem.at[x, me], fixed_here.at[me]
                )
            plgpu.barrier_wait(fixed_here.at[me])
            of_rows = None
            if not cut.keys_fixed:
                of_rows = tuple(parts.rows_of(x, (b, h, rows)) for x in (given.lse, given.delta))

            def step(t, accs):
                accs = dict(zip(cut.makes, accs, strict=True))
                _, column = walk.at(t)
                slot_1, slot_2 = (parts.slot_of(t, stages) for stages in cut.stages)
                moving_1, moving_2 = memory_1.at[slot_1], memory_2.at[slot_2]

                def of_queries(x):
                    if of_rows is not None:
                        return of_rows[x]
                    return parts.columns_of(vector_mem.at[x, slot_1])

                plgpu.barrier_wait(here_1.at[slot_1])
                scores = parts.product((fixed_mem.at[0, me + parts.nought(t)], moving_1))
                p = parts.weights(scores, of_queries(0), walk, mine, column)
                plgpu.barrier_wait(here_2.at[slot_2])
                if "dv" in accs:
                    accs["dv"] = parts.accumulate(accs["dv"], p, moving_2, problem)
                ds = None
                if needs_dp:
                    dp = parts.product((fixed_mem.at[1, me + parts.nought(t)], moving_2))
                    ds = parts.gradient(p, dp, of_queries(1), walk)
                plgpu.barrier_arrive(free_2.at[slot_2])
                for name in {"dq", "dk"} & set(accs):
                    accs[name] = parts.accumulate(accs[name], ds, moving_1, problem)
                plgpu.barrier_arrive(free_1.at[slot_1])
                return tuple(accs[name] for name in cut.makes)

            accs = lax.fori_loop(
                0, walk.steps, step, tuple(parts.zeros(columns) for _ in cut.makes)
            )
            for name, acc in zip(cut.makes, accs, strict=True):
                results[name][b, rows, h, pl.ds(first_column, columns)] = acc

        pl.when(me == LOADER)(load)
        pl.when(me != LOADER)(compute)

    def inputs(*shape: int):
        return plgpu.SMEM(shape, problem.dtype, transforms=hopper.transforms(problem.dtype))

    stages_1, stages_2 = cut.stages
    pl.run_scoped(
        scope,
        inputs(1 + needs_dp, 2, ROWS, problem.width),
        inputs(stages_1, cut.moving, problem.width),
        inputs(stages_2, cut.moving, columns),
        plgpu.SMEM((max(len(vectors), 1), stages_1, cut.moving), "float32"),
        plgpu.Barrier(num_barriers=2, num_arrivals=1 + needs_dp),
        plgpu.Barrier(num_barriers=stages_1, num_arrivals=1 + len(vectors)),
        plgpu.Barrier(num_barriers=stages_2),
        plgpu.Barrier(num_barriers=stages_1, num_arrivals=2),
        plgpu.Barrier(num_barriers=stages_2, num_arrivals=2),
        collective_axes="warpgroup",
    )
