"""The backward kernel whose consumer warpgroups have 64 fixed rows each, and all of their results.

A thread block computes all columns of the results, or half of them for dv at heads of 512.
"""

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.chip import ROWS
from parallax.kernels.ring_attention import mosaic_backward_math as block_math
from parallax.kernels.ring_attention.backward_tiles import Pass
from parallax.kernels.ring_attention.mosaic_backward_parts import (
    Ring,
    block_of,
    opaque_zero,
    ring_barriers,
)
from parallax.kernels.ring_attention.mosaic_parts import Problem

PRODUCER = 2


def kernel(*arrays, problem: Problem, cut: Pass, q_length: int):
    """The body of one thread block; arguments are arrays in device memory."""
    block = block_of(arrays, problem, cut, q_length)
    walk, b, h, warpgroup = block.walk, block.b, block.h, lax.axis_index("warpgroup")
    fixed = block.fixed if cut.needs_dp else block.fixed[:1]
    sums = block.sums if cut.needs_dp else block.sums[:1]
    stages_1, stages_2 = cut.stages
    columns = problem.width // cut.parts
    own_columns = pl.ds(block.part * columns, columns)

    def scope(fixed_mem, sums_mem, fixed_full, memory_1, barriers_1, memory_2, barriers_2):
        ring_1 = Ring(memory_1, barriers_1[0], barriers_1[1], stages_1)
        ring_2 = Ring(memory_2, barriers_2[0], barriers_2[1], stages_2)

        def load():
            plgpu.set_max_registers(hopper.LOADER_REGISTERS, action="decrease")

            @pl.loop(0, walk.steps)
            def _(step):
                head, row = walk.at(step)
                rows = pl.ds(row, cut.moving)

                def first(stage):
                    yield block.moving[0].at[b, rows, head], memory_1.at[stage]
                    for x, values in enumerate(sums if cut.keys_fixed else ()):
                        yield values.at[b, head, rows], sums_mem.at[x, stage]

                def second(stage):
                    yield block.moving[1].at[b, rows, head, own_columns], memory_2.at[stage]

                ring_1.fill(step, first, cut.cluster)
                ring_2.fill(step, second, cut.cluster)

            ring_1.drain(walk.steps)
            ring_2.drain(walk.steps)

        def compute():
            plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
            first_row = block.first + warpgroup * ROWS
            rows = pl.ds(first_row, ROWS)
            for x, source in enumerate(fixed):
                at = source.at[b, rows, h]
                plgpu.copy_gmem_to_smem(at, fixed_mem.at[x, warpgroup], fixed_full.at[warpgroup])
            plgpu.barrier_wait(fixed_full.at[warpgroup])
            row_sums = []
            if not cut.keys_fixed:
                row_sums = [block_math.rows_of(x, (b, h, rows)) for x in sums]

            def step(t, accs: tuple[jax.Array, ...]):
                again = warpgroup + opaque_zero(t)
                stage_1 = ring_1.wait(t)
                moving_1 = memory_1.at[stage_1]

                def sum_of_queries(x):
                    return (
                        row_sums[x] if row_sums else block_math.columns_of(sums_mem.at[x, stage_1])
                    )

                def p_of_scores():
                    return block_math.weights(scores, sum_of_queries(0), walk)

                def ds():
                    return block_math.gradient(p, dp, sum_of_queries(1), walk)

                scores, _ = block_math.product(fixed_mem.at[0, again], moving_1)
                scores = block_math.hide(scores, walk, first_row, walk.at(t)[1])
                moving_2 = memory_2.at[ring_2.wait(t)]
                if cut.needs_dp:
                    fixed_2 = fixed_mem.at[1, again]
                    dp, p = block_math.product(fixed_2, moving_2, meanwhile=p_of_scores)
                else:
                    dp, p = None, p_of_scores()
                if "dv" not in cut.makes:
                    ring_2.release(t)
                terms = {"dv": (lambda: p, moving_2), "dk": (ds, moving_1), "dq": (ds, moving_1)}
                accs = block_math.accumulate(accs, [terms[x] for x in cut.makes], problem)
                if "dv" in cut.makes:
                    ring_2.release(t)
                ring_1.release(t, loaded=cut.keys_fixed)
                return accs

            start = tuple(block_math.zeros(columns) for _ in cut.makes)
            accs = lax.fori_loop(0, walk.steps, step, start)
            for name, acc in zip(cut.makes, accs, strict=True):
                block.results[name][b, rows, h, own_columns] = acc

        pl.when(warpgroup == PRODUCER)(load)
        pl.when(warpgroup != PRODUCER)(compute)

    def inputs(*shape: int):
        return plgpu.SMEM(shape, problem.dtype, transforms=hopper.transforms(problem.dtype))

    copies_1 = 1 + (len(sums) if cut.keys_fixed else 0)
    pl.run_scoped(
        scope,
        inputs(len(fixed), 2, ROWS, problem.width),
        plgpu.SMEM((len(sums), stages_1, cut.moving), "float32"),
        plgpu.Barrier(num_barriers=2, num_arrivals=len(fixed)),
        inputs(stages_1, cut.moving, problem.width),
        ring_barriers(stages_1, copies_1, readers=2, cluster=cut.cluster),
        inputs(stages_2, cut.moving, columns),
        ring_barriers(stages_2, 1, readers=2, cluster=cut.cluster),
        collective_axes="warpgroup",
    )
