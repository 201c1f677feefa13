"""The kernel that multiplies x by one or two matrices, streamed once, each step by all tokens.

One producer warpgroup loads and two consumer warpgroups multiply: each has half of the block's
columns, for all of its tokens. The warpgroup that needs integers unpacks them into shared memory in
the activations' dtype, while its last product runs. Operands in registers would be a shorter way,
but there the tensor cores need pairs along the summed dimension, and weights are stored with
outputs contiguous.
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

PRODUCER = COMPUTING
# Registers per thread: three streams of copies take more than the 24 of attention's producers. In
# all no more than a block starts with (3 x 168), or a warpgroup would wait for registers forever.
PRODUCER_REGISTERS, CONSUMER_REGISTERS = 40, 232
COLUMN = plgpu.Layout.WGMMA.reduce(0)
# Steps that a block prefetches into the L2 cache, of the next weight tile on its multiprocessor: 17
# MB of 16-bit weights over all blocks, which memory delivers in some 4 us, about a launch's time.
AHEAD = 4


def kernel(layer, x, *refs, stream: Stream):
    """The body of one thread block; arguments are arrays in device memory.

    Args:
      layer: [1] int32.
      x: [tokens, inputs].
      refs: matrices [layers, inputs, outputs]; scales of each, [outputs], or with groups
        [layers, inputs / group, outputs]; biases [outputs] of each; the next product's matrix;
        results [splits, tokens, outputs].
    """
    cut, warpgroup = stream.cut, lax.axis_index("warpgroup")
    refs = list(refs)
    weights, scales, biases = (
        [refs.pop(0) for _ in range(cut.matrices if given else 0)]
        for given in (True, stream.group is not None, stream.biased)
    )
    next_weights = refs.pop(0) if stream.following else None
    results, n, block = refs, layer[0], lax.axis_index("block")
    work = place(cut, block)
    token, column = work.group * cut.rows, work.tile * cut.columns

    def scope(x_mem, memories, scale_memories, unpacked, staging, full, empty):
        def load():
            plgpu.set_max_registers(PRODUCER_REGISTERS, action="decrease")

            @pl.loop(0, work.steps)
            def _(j):
                stage = lax.rem(j, i32(cut.stages))
                pl.when(j >= cut.stages)(functools.partial(plgpu.barrier_wait, empty.at[stage]))
                inputs = pl.ds((work.step + j) * STEP, STEP)
                tokens = x.at[pl.ds(token, cut.rows), inputs]
                plgpu.copy_gmem_to_smem(tokens, x_mem.at[stage], full.at[stage])
                for w, memory in zip(weights, memories, strict=True):
                    tile = w.at[n, inputs, pl.ds(column, cut.columns)]
                    plgpu.copy_gmem_to_smem(tile, memory.at[stage], full.at[stage])
                for s, memory in zip(scales if stream.group else (), scale_memories, strict=True):
                    row = lax.div((work.step + j) * STEP, i32(stream.group))
                    tile = s.at[n, row, pl.ds(column, cut.columns)]
                    plgpu.copy_gmem_to_smem(tile, memory.at[stage], full.at[stage])

            prefetch_next()

            # Every arrival is waited for; the interpreter of JAX 0.11 requires it.
            @pl.loop(jnp.maximum(work.steps - cut.stages, 0), work.steps)
            def _(j):
                plgpu.barrier_wait(empty.at[lax.rem(j, i32(cut.stages))])

        def prefetch_next():
            """Prefetch this product's next weight tile, or else the next product's first one."""
            later = block + MULTIPROCESSORS

            def prefetch(matrices, cut: Cut, which):
                next_work = place(cut, which)
                for w in matrices:
                    for step in range(AHEAD):
                        first = (next_work.step + step) * STEP
                        columns = pl.ds(next_work.tile * cut.columns, cut.columns)
                        wanted = (next_work.group == 0) & (step < next_work.steps)
                        source = w.at[n, pl.ds(first, STEP), columns]
                        pl.when(wanted)(functools.partial(plgpu.async_prefetch, source))

            if cut.blocks > MULTIPROCESSORS:
                pl.when(later < cut.blocks)(lambda: prefetch(weights, cut, later))
            following = stream.following
            if following is not None:
                first = lax.rem(block, i32(MULTIPROCESSORS))
                last_wave = (later >= cut.blocks) & (first < following.blocks)
                pl.when(last_wave)(lambda: prefetch([next_weights], following, first))

        def compute():
            plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
            own_columns = pl.ds(warpgroup * cut.share, cut.share)

            def multiply(*sums):
                @pl.loop(0, work.steps)
                def _(j):
                    stage = lax.rem(j, i32(cut.stages))
                    plgpu.barrier_wait(full.at[stage])
                    tiles = [memory.at[stage, :, own_columns] for memory in memories]
                    if unpacked is not None:
                        # The product before last is done: its operand's buffer is free.
                        buffer = unpacked.at[warpgroup, lax.rem(j, i32(2))]
                        for i, tile in enumerate(tiles):
                            scale = (
                                scale_memories[i].at[stage, own_columns] if stream.group else None
                            )
                            buffer[i] = unpack(tile, scale, stream.dtype)
                            tiles[i] = buffer.at[i]
                        plgpu.commit_smem()
                    for acc, tile in zip(sums, tiles, strict=True):
                        plgpu.wgmma(acc, x_mem.at[stage], tile)
                    plgpu.wgmma_wait(len(sums))

                    @pl.when(j > 0)
                    def _():
                        plgpu.barrier_arrive(empty.at[lax.rem(j - 1, i32(cut.stages))])

                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(empty.at[lax.rem(work.steps - 1, i32(cut.stages))])
                return [acc[...] for acc in sums]

            accumulator = plgpu.WGMMAAccumulatorRef((cut.rows, cut.share), jnp.float32)
            sums = pl.run_scoped(multiply, *[accumulator] * cut.matrices)
            write(sums, column + warpgroup * cut.share)

        def write(sums, first):
            """Write the sums in chunks through shared memory; copies stop at the arrays' ends."""
            chunk = staging.shape[-1]
            for row in range(0, cut.rows, ROWS):
                for start in range(0, cut.share, chunk):
                    # In order: activations computed early would take registers.
                    sums = lax.optimization_barrier(tuple(sums))
                    columns = pl.ds(first + start, chunk)
                    parts = [x[row : row + ROWS, start : start + chunk] for x in sums]
                    if stream.group == 0:
                        parts = [x * along(s, columns) for x, s in zip(parts, scales, strict=True)]
                    if stream.biased:
                        once = jnp.where(work.split == 0, 1.0, 0.0)
                        parts = [
                            x + along(b, columns) * once for x, b in zip(parts, biases, strict=True)
                        ]
                    if stream.activate is not None:
                        parts = [stream.activate(*parts)]
                    for part, out in zip(parts, results, strict=True):
                        buffer = staging.at[warpgroup]
                        buffer[...] = part.astype(buffer.dtype)
                        plgpu.commit_smem()
                        rows = pl.ds(token + row, ROWS)
                        plgpu.copy_smem_to_gmem(buffer, out.at[work.split, rows, columns])
                        plgpu.wait_smem_to_gmem(0)

        def along(vector, columns):
            values = plgpu.load(vector.at[columns], layout=COLUMN, optimized=False)
            return lax.broadcast_in_dim(values, (ROWS, values.shape[0]), [1])

        pl.when(warpgroup == PRODUCER)(load)
        pl.when(warpgroup != PRODUCER)(compute)

    def memory(shape, dtype, swizzled=128):
        return plgpu.SMEM(shape, dtype, transforms=transforms(dtype, swizzled))

    tile_shape = (cut.stages, STEP, cut.columns)
    stored = weights[0].dtype
    unpacked_shape = (COMPUTING, 2, cut.matrices, STEP, cut.share)
    packed = cut.item_bytes == 1
    copies = cut.matrices * (2 if stream.group else 1)
    chunk = 128 // jnp.dtype(results[0].dtype).itemsize
    pl.run_scoped(
        scope,
        memory((cut.stages, cut.rows, STEP), stream.dtype),
        [memory(tile_shape, stored, min(128, cut.share * cut.item_bytes))] * cut.matrices,
        [plgpu.SMEM((cut.stages, cut.columns), "float32")] * (copies - cut.matrices),
        memory(unpacked_shape, stream.dtype) if packed else None,
        memory((COMPUTING, ROWS, chunk), results[0].dtype),
        plgpu.Barrier(num_arrivals=1 + copies, num_barriers=cut.stages),
        plgpu.Barrier(num_arrivals=COMPUTING, num_barriers=cut.stages),
        collective_axes="warpgroup",
    )
