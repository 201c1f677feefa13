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
from typing import Any, NamedTuple

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
# A thread holds 8 neighbours of a slab [8, 128]: neither reading them nor writing them as 16 bits
# has shared-memory bank conflicts.
PACKED = plgpu.Layout.TILED(
    plgpu.Tiling(((SLAB, COLUMNS), (2, COLUMNS), (8,))),
    warp_dims=(-5,),
    lane_dims=(-3, -2),
    vector_dim=-1,
)
# Steps over which float32 adds up products of 8-bit integers, 2 ** 14 at most each, exactly.
EXACT_STEPS = 2**24 // 2**14 // PART
_MOST_STAGES = 8
_BARRIER_BYTES = 1024


class Problem(NamedTuple):
    """The static parameters of a kernel, all known when it is traced.

    Attributes:
      tokens: tokens, padded to eights.
      unit: inputs of a unit. rows: rows of values in it.
      is_sparse: whether there are positions.
      span: steps whose sums share scales; None: all steps of a block.
      is_scaled: whether there are scales.
      steps, splits: steps over all inputs, and the parts that they are divided into.
      dtype: dtype of the products.
      sums: dtype of the sums over all steps: float32, or int32 for integers.
    """

    tokens: int
    unit: int
    rows: int
    is_sparse: bool
    span: int | None
    is_scaled: bool
    steps: int
    splits: int
    dtype: Any
    sums: Any

    @property
    def units(self) -> int:
        """Units of a part."""
        return PART // self.unit

    def stages(self, item_bytes: int) -> int:
        """Return the steps in shared memory at a time, with values of these bytes."""
        packed = CONSUMERS * self.units * COLUMNS * (self.rows * item_bytes + self.is_sparse)
        dense = 2 * STEP * COLUMNS * 2
        rest = SHARED_BYTES_LIMIT - _BARRIER_BYTES - dense - COLUMNS * self.tokens * 4
        return min(_MOST_STAGES, rest // (packed + self.tokens * STEP * 2))


def matmul(x: jax.Array, matrix: PackedMatrix) -> jax.Array:
    """Compute `api.packed_matmul` by the kernel.

    Cost: 2 E T K O FLOPs with T padded to eights, declared to XLA with the stored bytes, x and the
      partial sums, each read or written once.
    """
    *_, tokens, inputs = x.shape
    unit, group, outputs, experts = matrix.unit, matrix.group, matrix.shape[1], matrix.experts
    is_integer = x.dtype == jnp.int8
    if is_integer:
        x = x.astype(jnp.bfloat16)
    # The first inputs of a part's units, then the second ones, and so on.
    x = hopper.pad(x.reshape(experts, tokens, inputs), 1, 8)
    x = x.reshape(experts, -1, inputs // PART, PART // unit, unit).swapaxes(3, 4)
    x = x.reshape(experts, -1, inputs)
    problem = Problem(
        tokens=x.shape[1],
        unit=unit,
        rows=matrix.rows,
        is_sparse=matrix.positions is not None,
        span=None if group == inputs else group // STEP,
        is_scaled=matrix.scales is not None,
        steps=inputs // STEP,
        splits=limits.splits(tokens, inputs, outputs, group, matrix.bits_per_weight, experts),
        dtype=x.dtype,
        sums=jnp.int32 if is_integer else jnp.float32,
    )
    values = matrix.values.reshape(experts, -1, matrix.rows, outputs)
    beside = [a for a in (matrix.positions, matrix.scales) if a is not None]
    stored = [values, *(a.reshape(experts, -1, outputs) for a in beside)]
    shape = (experts, problem.splits, outputs, problem.tokens)
    result = jax.ShapeDtypeStruct(shape, problem.sums)
    (sums,) = hopper.call(
        "packed_matmul",
        functools.partial(kernel, problem=problem),
        [x, *stored],
        [result],
        grid={"experts": experts, "tiles": outputs // COLUMNS, "splits": problem.splits},
        flops=2.0 * experts * problem.tokens * inputs * outputs,
        bytes_accessed=hopper.bytes_of(x, *stored, result),
        computes="products",
        num_threads=CONSUMERS + 1,
    )
    total = sums.sum(axis=1, dtype=problem.sums).swapaxes(1, 2)[:, :tokens]
    return total.reshape(*matrix.lead, tokens, outputs)


def kernel(x, values, *refs, problem: Problem):
    """The body of one thread block; arguments are arrays in device memory.

    Args:
      x: [experts, tokens, inputs], permuted.
      values: [experts, units, rows, outputs].
      refs: positions [experts, units, outputs] if sparse; scales [experts, groups, outputs] if
        scaled; then the result [experts, splits, outputs, tokens].
    """
    expert = lax.axis_index("experts")
    *stored, out = (ref.at[expert] for ref in refs)
    x, values = x.at[expert], values.at[expert]
    positions = stored.pop(0) if problem.is_sparse else None
    scales = stored.pop(0) if problem.is_scaled else None
    split, span = lax.axis_index("splits"), problem.span or 1
    columns = pl.ds(lax.axis_index("tiles") * COLUMNS, COLUMNS)
    pieces = problem.steps // span
    first, end = (lax.div((split + i) * pieces, i32(problem.splits)) for i in (0, 1))
    steps = (end - first) * span

    def scope(ring: hopper.Ring, dense_memory, sums_memory, summed):
        warpgroup = lax.axis_index("warpgroup")

        def load():
            @pl.loop(0, steps)
            def _(j):
                step = first * span + j
                units = pl.ds(step * CONSUMERS * problem.units, CONSUMERS * problem.units)
                sources = [x.at[:, pl.ds(step * STEP, STEP)], values.at[units, :, columns]]
                if positions is not None:
                    sources.append(positions.at[units, columns])

                def copy(memory, full):
                    for source, target in zip(sources, memory, strict=True):
                        plgpu.copy_gmem_to_smem(source, target, full)

                ring.fill(j, copy)

            ring.drain(steps)

        def unpack(memory, dense):
            """Unpack this warpgroup's part into `dense` [PART, COLUMNS], a slab at a time."""
            values, *rest = memory
            for start in range(0, problem.units, SLAB):
                units = pl.ds(warpgroup * problem.units + start, SLAB)
                rows = [read(values.at[units, i]) for i in range(problem.rows)]
                places = read(rest[0].at[units]) if rest else None
                for i, values_of_input in enumerate(unpacked(rows, places, jnp.float32)):
                    slab = pl.ds(i * problem.units + start, SLAB)
                    dense[slab] = values_of_input.astype(problem.dtype)
            plgpu.commit_smem()

        def sums_of(start, count):
            """Return this warpgroup's sums over `count` steps, [COLUMNS, tokens]."""

            def multiply(acc):
                @pl.loop(start, start + count)
                def _(j):
                    tokens, *packed = ring.wait(j)
                    # The product before last is done: its operand's buffer is free.
                    dense = dense_memory.at[warpgroup, lax.rem(j, i32(2))]
                    unpack(packed, dense)
                    part = tokens.at[:, pl.ds(warpgroup * PART, PART)]
                    hopper.wgmma(acc, dense.transpose((1, 0)), part.transpose((1, 0)))
                    plgpu.wgmma_wait(1)
                    pl.when(j > start)(lambda: ring.free(j - 1))

                plgpu.wgmma_wait(0)
                ring.free(start + count - 1)

            return hopper.product((COLUMNS, problem.tokens), multiply)

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
            zeros = plgpu.layout_cast(jnp.zeros((COLUMNS, problem.tokens), problem.sums), SUMS)
            return lax.fori_loop(0, count, lambda i, total: total + add(i), zeros)

        def exact_sums_of(i):
            start = i * EXACT_STEPS
            return sums_of(start, lax.min(steps - start, i32(EXACT_STEPS))).astype(jnp.int32)

        def compute():
            if problem.sums == jnp.int32:
                total = added(exact_sums_of, lax.div(steps + (EXACT_STEPS - 1), i32(EXACT_STEPS)))
            elif problem.span is None:
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

    stages, units = problem.stages(values.dtype.itemsize), CONSUMERS * problem.units
    memory = [
        hopper.swizzled((stages, problem.tokens, STEP), problem.dtype),
        plgpu.SMEM((stages, units, problem.rows, COLUMNS), values.dtype),
    ]
    if problem.is_sparse:
        memory.append(plgpu.SMEM((stages, units, COLUMNS), jnp.uint8))
    pl.run_scoped(
        scope,
        hopper.ring(memory, stages, consumers=CONSUMERS, copies=len(memory)),
        hopper.swizzled((CONSUMERS, 2, PART, COLUMNS), problem.dtype),
        plgpu.SMEM((COLUMNS, problem.tokens), problem.sums),
        plgpu.Barrier(),
        collective_axes="warpgroup",
    )


def read(packed):
    """Load a slab of packed bytes."""
    return plgpu.load(packed, layout=PACKED, optimized=False)
