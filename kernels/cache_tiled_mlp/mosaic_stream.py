"""The kernel: x by one or two matrices that are streamed once, each step of them by all tokens.

One warpgroup loads, two multiply: each has half of the block's columns, for all of its tokens.
Integers are unpacked into shared memory in the activations' dtype, by the warpgroup that needs
them, while its last product runs. Registers would be the shorter way, but there the tensor cores
want pairs along the sum, and weights are stored with outputs side by side.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels.cache_tiled_mlp.cut import COMPUTING, Cut
from parallax.kernels.cache_tiled_mlp.limits import STEP
from parallax.kernels.cache_tiled_mlp.mosaic_parts import Stream, place, unpack
from parallax.kernels.chip import MULTIPROCESSORS, ROWS
from parallax.kernels.hopper import i32, transforms

LOADER = COMPUTING
# Of a thread: three streams of copies take more than the 24 that attention's loaders have. In all
# no more than a block starts with (3 x 168), or a warpgroup would wait for its own for ever.
LOADER_REGISTERS, COMPUTE_REGISTERS = 40, 232
COLUMN = plgpu.Layout.WGMMA.reduce(0)
# Steps that a block asks the L2 cache for, of the slab that follows on its multiprocessor: 17 MB of
# 16-bit weights over all of them, which the memory takes some 4 us for: about a launch.
AHEAD = 4


def kernel(layer, x, *refs, stream: Stream):
    """Body of one block of threads; arguments are arrays in device memory.

    Args:
      layer: [1] int32.
      x: [tokens, inputs].
      refs: matrices [layers, inputs, outputs]; scales of each, [outputs], or with groups
        [layers, inputs / group, outputs]; biases [outputs] of each; the following product's matrix;
        results [splits, tokens, outputs].
    """
    cut, me = stream.cut, lax.axis_index("warpgroup")
    refs = list(refs)
    weights, scales, biases = (
        [refs.pop(0) for _ in range(cut.matrices if given else 0)]
        for given in (True, stream.group is not None, stream.biased)
    )
    next_weights = refs.pop(0) if stream.following else None
    results, n, block = refs, layer[0], lax.axis_index("block")
    here = place(cut, block)
    token, column = here.group * cut.rows, here.tile * cut.columns

    def scope(x_mem, memories, scale_memories, unpacked, stage, arrived, free):
        def load():
            plgpu.set_max_registers(LOADER_REGISTERS, action="decrease")

            @pl.loop(0, here.steps)
            def _(j):
                slot = lax.rem(j, i32(cut.stages))
                pl.when(j >= cut.stages)(functools.partial(plgpu.barrier_wait, free.at[slot]))
                inputs = pl.ds((here.step + j) * STEP, STEP)
                tokens = x.at[pl.ds(token, cut.rows), inputs]
                plgpu.copy_gmem_to_smem(tokens, x_mem.at[slot], arrived.at[slot])
                for w, memory in zip(weights, memories, strict=True):
                    slab = w.at[n, inputs, pl.ds(column, cut.columns)]
                    plgpu.copy_gmem_to_smem(slab, memory.at[slot], arrived.at[slot])
                for s, memory in zip(scales if stream.group else (), scale_memories, strict=True):
                    of_step = lax.div((here.step + j) * STEP, i32(stream.group))
                    slab = s.at[n, of_step, pl.ds(column, cut.columns)]
                    plgpu.copy_gmem_to_smem(slab, memory.at[slot], arrived.at[slot])

            ask_ahead()

            # Every arrival is waited for, or the interpreter of JAX 0.11 objects.
            @pl.loop(jnp.maximum(here.steps - cut.stages, 0), here.steps)
            def _(j):
                plgpu.barrier_wait(free.at[lax.rem(j, i32(cut.stages))])

        def ask_ahead():
            """The next slab of this product, or else the first one of the next, into the cache."""
            later = block + MULTIPROCESSORS

            def ask(slabs, cut: Cut, which):
                there = place(cut, which)
                for w in slabs:
                    for step in range(AHEAD):
                        first = (there.step + step) * STEP
                        columns = pl.ds(there.tile * cut.columns, cut.columns)
                        wanted = (there.group == 0) & (step < there.steps)
                        source = w.at[n, pl.ds(first, STEP), columns]
                        pl.when(wanted)(functools.partial(plgpu.async_prefetch, source))

            if cut.blocks > MULTIPROCESSORS:
                pl.when(later < cut.blocks)(lambda: ask(weights, cut, later))
            following = stream.following
            if following is not None:
                first = lax.rem(block, i32(MULTIPROCESSORS))
                last_wave = (later >= cut.blocks) & (first < following.blocks)
                pl.when(last_wave)(lambda: ask([next_weights], following, first))

        def compute():
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            mine = pl.ds(me * cut.share, cut.share)

            def multiply(*sums):
                @pl.loop(0, here.steps)
                def _(j):
                    slot = lax.rem(j, i32(cut.stages))
                    plgpu.barrier_wait(arrived.at[slot])
                    slabs = [memory.at[slot, :, mine] for memory in memories]
                    if unpacked is not None:
                        # The product before last is over: its operand's place is free.
                        turn = unpacked.at[me, lax.rem(j, i32(2))]
                        for i, slab in enumerate(slabs):
                            scale = scale_memories[i].at[slot, mine] if stream.group else None
                            turn[i] = unpack(slab, scale, stream.dtype)
                            slabs[i] = turn.at[i]
                        plgpu.commit_smem()
                    for acc, slab in zip(sums, slabs, strict=True):
                        plgpu.wgmma(acc, x_mem.at[slot], slab)
                    plgpu.wgmma_wait(len(sums))

                    @pl.when(j > 0)
                    def _():
                        plgpu.barrier_arrive(free.at[lax.rem(j - 1, i32(cut.stages))])

                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(free.at[lax.rem(here.steps - 1, i32(cut.stages))])
                return [acc[...] for acc in sums]

            accumulator = plgpu.WGMMAAccumulatorRef((cut.rows, cut.share), jnp.float32)
            sums = pl.run_scoped(multiply, *[accumulator] * cut.matrices)
            write(sums, column + me * cut.share)

        def write(sums, first):
            """Some rows and columns at a time, through shared memory; copies stop at the ends."""
            chunk = stage.shape[-1]
            for row in range(0, cut.rows, ROWS):
                for start in range(0, cut.share, chunk):
                    # One after the other, or activations ahead of their turn take registers.
                    sums = lax.optimization_barrier(tuple(sums))
                    columns = pl.ds(first + start, chunk)
                    parts = [x[row : row + ROWS, start : start + chunk] for x in sums]
                    if stream.group == 0:
                        parts = [x * along(s, columns) for x, s in zip(parts, scales, strict=True)]
                    if stream.biased:
                        once = jnp.where(here.split == 0, 1.0, 0.0)
                        parts = [
                            x + along(b, columns) * once for x, b in zip(parts, biases, strict=True)
                        ]
                    if stream.activate is not None:
                        parts = [stream.activate(*parts)]
                    for part, out in zip(parts, results, strict=True):
                        mine = stage.at[me]
                        mine[...] = part.astype(mine.dtype)
                        plgpu.commit_smem()
                        rows = pl.ds(token + row, ROWS)
                        plgpu.copy_smem_to_gmem(mine, out.at[here.split, rows, columns])
                        plgpu.wait_smem_to_gmem(0)

        def along(vector, columns):
            values = plgpu.load(vector.at[columns], layout=COLUMN, optimized=False)
            return lax.broadcast_in_dim(values, (ROWS, values.shape[0]), [1])

        pl.when(me == LOADER)(load)
        pl.when(me != LOADER)(compute)

    def memory(shape, dtype, swizzled=128):
        return plgpu.SMEM(shape, dtype, transforms=transforms(dtype, swizzled))

    slab = (cut.stages, STEP, cut.columns)
    stored = weights[0].dtype
    turns = (COMPUTING, 2, cut.matrices, STEP, cut.share)
    packed = cut.item_bytes == 1
    copies = cut.matrices * (2 if stream.group else 1)
    chunk = 128 // jnp.dtype(results[0].dtype).itemsize
    pl.run_scoped(
        scope,
        memory((cut.stages, cut.rows, STEP), stream.dtype),
        [memory(slab, stored, min(128, cut.share * cut.item_bytes))] * cut.matrices,
        [plgpu.SMEM((cut.stages, cut.columns), "float32")] * (copies - cut.matrices),
        memory(turns, stream.dtype) if packed else None,
        memory((COMPUTING, ROWS, chunk), results[0].dtype),
        plgpu.Barrier(num_arrivals=1 + copies, num_barriers=cut.stages),
        plgpu.Barrier(num_arrivals=COMPUTING, num_barriers=cut.stages),
        collective_axes="warpgroup",
    )
