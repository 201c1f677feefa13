"""The Mosaic kernel for Hopper: packed tiles stream in once, and are unpacked in registers.

One producer warpgroup loads; two consumer warpgroups unpack and multiply half of each step's inputs
each, and add up their sums at the end. Products are transposed: outputs are the rows of wgmma,
tokens its columns. The inputs of a unit share bytes, so those of a part are multiplied in an order
of their own: the first of each unit, then the second. Weights are stored with outputs contiguous,
but operands in registers have to be pairs of inputs, so unpacked tiles go through shared memory. No
GPU has run it yet: it is checked in interpret mode, and compiled to machine code for the H100.

Integer activations (W8A8) are multiplied in 16 bits as well, exactly: Hopper's products of 8-bit
integers need the inputs of both operands contiguous, and weights have their outputs so.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.chip import SHARED_BYTES_LIMIT
from parallax.kernels.hopper import i32
from parallax.kernels.packed_matmul import limits
from parallax.kernels.packed_matmul.limits import COLUMNS, PART, STEP
from parallax.kernels.packed_matmul.reference import PackedMatrix, unpacked

CONSUMERS = STEP // PART
PRODUCER = CONSUMERS
SUMS = plgpu.Layout.WGMMA
SLAB = 8  # rows of a packed tile that are unpacked at a time
# Steps over which float32 adds up products of 8-bit integers, 2 ** 14 at most each, exactly.
EXACT_STEPS = 2**24 // 2**14 // PART
_MOST_STAGES = 8
_BARRIER_BYTES = 1024


def matmul(x: jax.Array, matrix: PackedMatrix) -> jax.Array:
    """Compute `api.packed_matmul` by the kernel.

    Cost: 2 E T K O FLOPs with T padded to eights, declared to XLA with the stored bytes, x and the
      partial sums, each read or written once.
    """
    *_, tokens, inputs = x.shape
    unit, group, outputs, experts = matrix.unit, matrix.group, matrix.shape[1], matrix.experts
    sums_dtype = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
    if x.dtype == jnp.int8:
        x = x.astype(jnp.bfloat16)
    # The first inputs of a part's units, then the second ones, and so on.
    x = hopper.pad(x.reshape(experts, tokens, inputs), 1, 8)
    x = x.reshape(experts, -1, inputs // PART, PART // unit, unit).swapaxes(3, 4)
    x = x.reshape(experts, -1, inputs)
    values = matrix.values.reshape(experts, -1, matrix.rows, outputs)
    beside = [a for a in (matrix.positions, matrix.scales) if a is not None]
    stored = [values, *(a.reshape(experts, -1, outputs) for a in beside)]
    splits = limits.splits(tokens, inputs, outputs, group, matrix.bits_per_weight, experts)
    result = jax.ShapeDtypeStruct((experts, splits, outputs, x.shape[1]), sums_dtype)
    (sums,) = hopper.call(
        "packed_matmul",
        functools.partial(
            kernel,
            unit=unit,
            is_sparse=matrix.positions is not None,
            is_scaled=matrix.scales is not None,
            span=None if group == inputs else group // STEP,
        ),
        [x, *stored],
        [result],
        grid={"experts": experts, "tiles": outputs // COLUMNS, "splits": splits},
        flops=2.0 * math.prod(x.shape) * outputs,
        bytes_accessed=hopper.bytes_of(x, *stored, result),
        computes="products",
        num_threads=CONSUMERS + 1,
    )
    total = sums.sum(axis=1, dtype=sums_dtype).swapaxes(1, 2)[:, :tokens]
    return total.reshape(*matrix.lead, tokens, outputs)


def kernel(x, values, *refs, unit: int, is_sparse: bool, is_scaled: bool, span: int | None):
    """The body of one thread block; arrays are in device memory, the rest is static.

    Args:
      x: [experts, tokens, inputs], permuted.
      values: [experts, units, rows, outputs].
      refs: positions [experts, units, outputs] if sparse; scales [experts, groups, outputs] if
        scaled; then the result [experts, splits, outputs, tokens].
      unit: inputs of a unit.
      span: steps whose sums share scales; None: all steps of a block.
    """
    expert = lax.axis_index("experts")
    *stored, out = (ref.at[expert] for ref in refs)
    x, values = x.at[expert], values.at[expert]
    positions = stored.pop(0) if is_sparse else None
    scales = stored.pop(0) if is_scaled else None
    (tokens, inputs), rows, units = x.shape, values.shape[1], PART // unit
    columns = pl.ds(lax.axis_index("tiles") * COLUMNS, COLUMNS)
    split, pieces = lax.axis_index("splits"), inputs // STEP // (span or 1)
    first, end = (lax.div((split + i) * pieces, i32(out.shape[0])) for i in (0, 1))
    first_step, steps = first * (span or 1), (end - first) * (span or 1)

    def scope(ring: hopper.Ring, dense_memory, sums_memory, summed):
        warpgroup = lax.axis_index("warpgroup")

        def load():
            @pl.loop(0, steps)
            def _(j):
                step = first_step + j
                loaded = pl.ds(step * CONSUMERS * units, CONSUMERS * units)
                sources = [x.at[:, pl.ds(step * STEP, STEP)], values.at[loaded, :, columns]]
                if positions is not None:
                    sources.append(positions.at[loaded, columns])

                def copy(memory, full):
                    for source, target in zip(sources, memory, strict=True):
                        plgpu.copy_gmem_to_smem(source, target, full)

                ring.fill(j, copy)

            ring.drain(steps)

        def unpack(memory, dense):
            """Unpack this warpgroup's part into `dense` [PART, COLUMNS], a slab at a time."""
            values, *rest = memory
            for start in range(0, units, SLAB):
                slab = pl.ds(warpgroup * units + start, SLAB)
                packed = [read(values.at[slab, i]) for i in range(rows)]
                places = read(rest[0].at[slab]) if rest else None
                for i, values_of_input in enumerate(unpacked(packed, places, jnp.float32)):
                    dense[pl.ds(i * units + start, SLAB)] = values_of_input.astype(x.dtype)
            plgpu.commit_smem()

        def sums_of(start, count):
            """Return this warpgroup's sums over `count` steps, [COLUMNS, tokens]."""

            def multiply(acc):
                @pl.loop(start, start + count)
                def _(j):
                    tokens_memory, *packed = ring.wait(j)
                    # The product before last is done: its operand's buffer is free.
                    dense = dense_memory.at[warpgroup, lax.rem(j, i32(2))]
                    unpack(packed, dense)
                    part = tokens_memory.at[:, pl.ds(warpgroup * PART, PART)]
                    hopper.wgmma(acc, dense.transpose((1, 0)), part.transpose((1, 0)))
                    plgpu.wgmma_wait(1)
                    pl.when(j > start)(lambda: ring.free(j - 1))

                plgpu.wgmma_wait(0)
                ring.free(start + count - 1)

            return hopper.product((COLUMNS, tokens), multiply)

        def scaled_sums_of(start, count, group):
            """Return `sums_of`, times the scales of a group of inputs if there are any."""
            if scales is None:
                return sums_of(start, count)
            # Asked for before it is needed.
            scale = plgpu.load(scales.at[group, columns], layout=SUMS.reduce(1), optimized=False)
            sums = sums_of(start, count)
            return sums * lax.broadcast_in_dim(scale, sums.shape, [0])

        def added(add, count):
            """Add up sums of all steps, `add(i)` for each i below `count`."""
            zeros = plgpu.layout_cast(jnp.zeros((COLUMNS, tokens), out.dtype), SUMS)
            return lax.fori_loop(0, count, lambda i, total: total + add(i), zeros)

        def exact_sums_of(i):
            start = i * EXACT_STEPS
            return sums_of(start, lax.min(steps - start, i32(EXACT_STEPS))).astype(jnp.int32)

        def compute():
            if out.dtype == jnp.int32:
                total = added(exact_sums_of, lax.div(steps + (EXACT_STEPS - 1), i32(EXACT_STEPS)))
            elif span is None:
                total = scaled_sums_of(0, steps, 0)
            else:
                total = added(lambda g: scaled_sums_of(g * span, span, first + g), end - first)

            @pl.when(warpgroup == 1)
            def _():
                sums_memory[...] = total
                plgpu.barrier_arrive(summed)

            @pl.when(warpgroup == 0)
            def _():
                plgpu.barrier_wait(summed)
                other = plgpu.load(sums_memory, layout=SUMS, optimized=False)
                hopper.store(out.at[split, columns], total + other)

        pl.when(warpgroup == PRODUCER)(load)
        pl.when(warpgroup != PRODUCER)(compute)

    unpacked_bytes, sums_bytes = 2 * STEP * COLUMNS * 2, COLUMNS * tokens * 4
    step_bytes = CONSUMERS * units * COLUMNS * (rows * values.dtype.itemsize + is_sparse)
    step_bytes += tokens * STEP * 2
    rest = SHARED_BYTES_LIMIT - _BARRIER_BYTES - unpacked_bytes - sums_bytes
    stages = min(_MOST_STAGES, rest // step_bytes)
    memory = [
        hopper.swizzled((stages, tokens, STEP), x.dtype),
        plgpu.SMEM((stages, CONSUMERS * units, rows, COLUMNS), values.dtype),
    ]
    if is_sparse:
        memory.append(plgpu.SMEM((stages, CONSUMERS * units, COLUMNS), jnp.uint8))
    pl.run_scoped(
        scope,
        hopper.ring(memory, stages, consumers=CONSUMERS, copies=len(memory)),
        hopper.swizzled((CONSUMERS, 2, PART, COLUMNS), x.dtype),
        plgpu.SMEM((COLUMNS, tokens), out.dtype),
        plgpu.Barrier(),
        collective_axes="warpgroup",
    )


def read(packed):
    """Load a slab of packed bytes."""
    return plgpu.load(packed, layout=hopper.bytes_layout(COLUMNS), optimized=False)
