"""The MLP as two launches of one Mosaic kernel for Hopper, which streams a product's weights once.

One producer warpgroup loads and two consumer warpgroups multiply: each has half of the block's
columns, for all of its tokens. The warpgroup that needs integers unpacks them into shared memory in
the activations' dtype, while its last product runs. Operands in registers would be a shorter way,
but there the tensor cores need pairs along the summed dimension, and weights are stored with
outputs contiguous.

The hidden rows go through device memory (mostly the L2 cache): one launch for both products would
leave partial sums [blocks, tokens, d_model] instead, which are more bytes with many tokens. No GPU
has run it yet: it is checked in interpret mode, and compiled to machine code for the H100.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.cache_tiled_mlp.cut import COMPUTING, STEP, Cut, cut_of
from parallax.kernels.cache_tiled_mlp.reference import Matrix, act, group_of, of_layer
from parallax.kernels.chip import MULTIPROCESSORS, ROWS
from parallax.kernels.hopper import i32

PRODUCER = COMPUTING
# Registers per thread: three streams of copies take more than the 24 of attention's producers. In
# all no more than a block starts with (3 x 168), or a warpgroup would wait for registers forever.
PRODUCER_REGISTERS, CONSUMER_REGISTERS = 40, 232
COLUMN = plgpu.Layout.WGMMA.reduce(0)
# Steps that a block prefetches into the L2 cache, of the next weight tile on its multiprocessor: 17
# MB of 16-bit weights over all blocks, which memory delivers in some 4 us, about a launch's time.
AHEAD = 4


def mlp(
    x, up: Matrix, down: Matrix, gate: Matrix | None, *, layer, activation: str, out_dtype
) -> jax.Array:
    """Compute the MLP as `api.cache_tiled_mlp` does.

    Cost: per launch, 2 FLOPs per weight and token, and the bytes of its weights, rows and results,
      each read or written once; declared to XLA. XLA reads the partial sums of splits again.
    """
    firsts = [up] if gate is None else [up, gate]
    first, second = (cut_of(x.shape[0], matrices) for matrices in (firsts, [down]))
    following = down.values, second
    activate = functools.partial(act, activation)
    if first.splits == 1:
        (hidden,) = product(x, firsts, layer, first, x.dtype, activate, following)
        hidden = hidden[0]
    else:
        sums = product(x, firsts, layer, first, jnp.float32, None, following)
        hidden = activate(*(part.sum(axis=0) for part in sums)).astype(x.dtype)
    whole = second.splits == 1
    (sums,) = product(hidden, [down], layer, second, out_dtype if whole else jnp.float32)
    return sums[0] if whole else sums.sum(axis=0).astype(out_dtype)


def product(
    x,
    matrices: Sequence[Matrix],
    layer,
    cut: Cut,
    dtype,
    activate: Callable | None = None,
    following: tuple[jax.Array, Cut] | None = None,
) -> list[jax.Array]:
    """Launch the kernel once, to multiply x by each matrix.

    Args:
      x: [tokens, inputs].
      dtype: dtype of the results.
      activate: makes one array of the sums of all matrices; None returns each.
      following: weights of the next product, and its partition.

    Returns:
      Per matrix, or once if activated: [splits, tokens, outputs].
    """
    tokens, outputs = x.shape[0], matrices[0].values.shape[-1]
    weights = [m.values for m in matrices]
    group = group_of(matrices[0])
    scales = [m.scales for m in matrices if m.scales is not None]
    streamed = [*weights, *scales] if group else weights
    n_bytes = sum(hopper.bytes_of(w) // w.shape[0] for w in streamed)
    if not group:
        scales = [hopper.pad(of_layer(s, layer)[0], 0, cut.columns) for s in scales]
    biases = [of_layer(m.bias, layer).astype(jnp.float32) for m in matrices if m.bias is not None]
    # Copies move whole 8-row tiles.
    x = hopper.pad(x, 0, 8)
    result = jax.ShapeDtypeStruct((cut.splits, x.shape[0], outputs), dtype)
    results = [result] * (1 if activate else len(matrices))
    out = hopper.call(
        "cache_tiled_mlp_up" if following else "cache_tiled_mlp_down",
        functools.partial(
            kernel, cut=cut, following=following and following[1], group=group,
            biased=bool(biases), activate=activate,
        ),
        [
            jnp.reshape(i32(layer), (1,)), x, *weights, *scales,
            *(hopper.pad(b, 0, cut.columns) for b in biases), *(following or ())[:1],
        ],
        results,
        grid={"block": cut.blocks},
        flops=2.0 * tokens * sum(math.prod(w.shape[1:]) for w in weights),
        bytes_accessed=n_bytes + hopper.bytes_of(x, *biases, *results),
        computes="products",
    )  # fmt: skip
    return [sums[:, :tokens] for sums in out]


def kernel(
    layer, x, *refs, cut: Cut, following: Cut | None, group: int | None, biased: bool,
    activate: Callable | None,
):  # fmt: skip
    """The body of one thread block; arrays are in device memory, the rest is static.

    Args:
      layer: [1] int32.
      x: [tokens, inputs].
      refs: matrices [layers, inputs, outputs]; scales of each, [outputs], or with groups
        [layers, inputs / group, outputs]; biases [outputs] of each; the next product's matrix;
        results [splits, tokens, outputs].
      cut: partition of this product. following: that of the next one, whose first steps it
        prefetches, or None.
      group: inputs that share a scale per column; weights are scaled when they are unpacked. 0: all
        inputs share one, and sums are scaled. None: no scales.
      biased: whether each matrix has a bias per column.
      activate: makes one array of the matrices' sums before it is written; None writes each.
    """
    left = iter(refs)
    weights, scales, biases = (
        [next(left) for _ in range(cut.matrices if given else 0)]
        for given in (True, group is not None, biased)
    )
    next_weights = [next(left)] if following else []
    results = list(left)
    n, block, warpgroup = layer[0], lax.axis_index("block"), lax.axis_index("warpgroup")
    work = place(cut, block)
    token, column = work.group * cut.rows, work.tile * cut.columns

    def scope(ring: hopper.Ring, unpacked, staging):
        def load():
            plgpu.set_max_registers(PRODUCER_REGISTERS, action="decrease")

            @pl.loop(0, work.steps)
            def _(j):
                first, columns = (work.step + j) * STEP, pl.ds(column, cut.columns)
                sources = [x.at[pl.ds(token, cut.rows), pl.ds(first, STEP)]]
                sources += [w.at[n, pl.ds(first, STEP), columns] for w in weights]
                if group:
                    sources += [s.at[n, lax.div(first, i32(group)), columns] for s in scales]

                def copy(stages, full):
                    for source, stage in zip(sources, stages, strict=True):
                        plgpu.copy_gmem_to_smem(source, stage, full)

                ring.fill(j, copy)

            # This product's next weight tile on this multiprocessor, or else the next product's.
            later, first = block + MULTIPROCESSORS, lax.rem(block, i32(MULTIPROCESSORS))
            if cut.blocks > MULTIPROCESSORS:
                pl.when(later < cut.blocks)(functools.partial(prefetch, weights, cut, later))
            if following:
                last_wave = (later >= cut.blocks) & (first < following.blocks)
                pl.when(last_wave)(functools.partial(prefetch, next_weights, following, first))
            ring.drain(work.steps)

        def prefetch(matrices, cut: Cut, which):
            """Prefetch the first steps of a block's weight tile into the L2 cache."""
            ahead = place(cut, which)
            columns = pl.ds(ahead.tile * cut.columns, cut.columns)
            for w in matrices:
                for step in range(AHEAD):
                    source = w.at[n, pl.ds((ahead.step + step) * STEP, STEP), columns]
                    wanted = (ahead.group == 0) & (step < ahead.steps)
                    pl.when(wanted)(functools.partial(plgpu.async_prefetch, source))

        def compute():
            plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
            own_columns = pl.ds(warpgroup * cut.share, cut.share)

            def multiply(*sums):
                @pl.loop(0, work.steps)
                def _(j):
                    tokens, *stages = ring.wait(j)
                    tiles = [tile.at[:, own_columns] for tile in stages[: cut.matrices]]
                    if unpacked is not None:
                        # The product before last is done: its operand's buffer is free.
                        buffer = unpacked.at[warpgroup, lax.rem(j, i32(2))]
                        for i, tile in enumerate(tiles):
                            scale = stages[cut.matrices + i].at[own_columns] if group else None
                            buffer[i] = unpack(tile, scale, x.dtype)
                            tiles[i] = buffer.at[i]
                        plgpu.commit_smem()
                    for acc, tile in zip(sums, tiles, strict=True):
                        hopper.wgmma(acc, tokens, tile)
                    plgpu.wgmma_wait(len(sums))
                    pl.when(j > 0)(lambda: ring.free(j - 1))

                plgpu.wgmma_wait(0)
                ring.free(work.steps - 1)
                return [acc[...] for acc in sums]

            accumulator = plgpu.WGMMAAccumulatorRef((cut.rows, cut.share), jnp.float32)
            sums = pl.run_scoped(multiply, *[accumulator] * cut.matrices)
            write(sums, column + warpgroup * cut.share)

        def write(sums, first):
            """Write the sums in chunks through shared memory; copies stop at the arrays' ends."""
            chunk, buffer = staging.shape[-1], staging.at[warpgroup]
            for row in range(0, cut.rows, ROWS):
                for start in range(0, cut.share, chunk):
                    # In order: activations computed early would take registers.
                    sums = lax.optimization_barrier(tuple(sums))
                    columns = pl.ds(first + start, chunk)
                    parts = [x[row : row + ROWS, start : start + chunk] for x in sums]
                    if group == 0:
                        parts = [x * along(s, columns) for x, s in zip(parts, scales, strict=True)]
                    if biased:
                        once = jnp.where(work.split == 0, 1.0, 0.0)
                        parts = [
                            x + along(b, columns) * once for x, b in zip(parts, biases, strict=True)
                        ]
                    if activate is not None:
                        parts = [activate(*parts)]
                    for part, out in zip(parts, results, strict=True):
                        buffer[...] = part.astype(buffer.dtype)
                        plgpu.commit_smem()
                        rows = pl.ds(token + row, ROWS)
                        plgpu.copy_smem_to_gmem(buffer, out.at[work.split, rows, columns])
                        plgpu.wait_smem_to_gmem(0)

        pl.when(warpgroup == PRODUCER)(load)
        pl.when(warpgroup != PRODUCER)(compute)

    stored, out_dtype = weights[0].dtype, results[0].dtype
    memory = [
        hopper.swizzled((cut.stages, cut.rows, STEP), x.dtype),
        *[hopper.swizzled((cut.stages, STEP, cut.columns), stored,
                          min(128, cut.share * cut.item_bytes))] * cut.matrices,
        *[plgpu.SMEM((cut.stages, cut.columns), "float32")] * (cut.matrices if group else 0),
    ]  # fmt: skip
    unpacked = hopper.swizzled((COMPUTING, 2, cut.matrices, STEP, cut.share), x.dtype)
    pl.run_scoped(
        scope,
        hopper.ring(memory, cut.stages, consumers=COMPUTING, copies=len(memory)),
        unpacked if cut.item_bytes == 1 else None,
        hopper.swizzled((COMPUTING, ROWS, 128 // jnp.dtype(out_dtype).itemsize), out_dtype),
        collective_axes="warpgroup",
    )


class Place(NamedTuple):
    """The work of one thread block: its token group, column tile, split, first step and steps."""

    group: jax.Array
    tile: jax.Array
    split: jax.Array
    step: jax.Array
    steps: jax.Array


def place(cut: Cut, block) -> Place:
    """Return the work of a block; token groups are innermost, so concurrent blocks share a tile."""
    tile = lax.div(block, i32(cut.groups))
    split = lax.div(tile, i32(cut.tiles))
    first, end = (lax.div((split + i) * cut.steps, i32(cut.splits)) for i in (0, 1))
    group = lax.rem(block, i32(cut.groups))
    return Place(group, lax.rem(tile, i32(cut.tiles)), split, first, end - first)


def along(vector, columns) -> jax.Array:
    """Load a value per column and broadcast it to the rows of a wgmma instruction."""
    values = plgpu.load(vector.at[columns], layout=COLUMN, optimized=False)
    return lax.broadcast_in_dim(values, (ROWS, values.shape[0]), [1])


def unpack(packed, scale, dtype):
    """Load a tile of integers [64, columns] from shared memory as `dtype`, scaled per column."""
    layout = hopper.bytes_layout(packed.shape[1])
    # int8 is exact in bfloat16, the only dtype to which the conversion takes few instructions.
    values = plgpu.load(packed, layout=layout).astype(jnp.bfloat16)
    if scale is not None:
        scale = plgpu.load(scale, layout=layout.reduce(0), optimized=False)
        values = values.astype(jnp.float32) * lax.broadcast_in_dim(scale, values.shape, [1])
    elif dtype == jnp.float16:
        values = values.astype(jnp.float32)
    return values.astype(dtype)
