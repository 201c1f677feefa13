"""The Mosaic kernel for Hopper: packed tiles stream in once, and are unpacked in registers.

One producer warpgroup loads; two consumer warpgroups unpack and multiply half of each step's inputs
each, and add up their sums at the end. Products are transposed: outputs are the rows of wgmma,
tokens its columns. The inputs of a unit share bytes, so those of a part are multiplied in an order
of their own: the first of each unit, then the second. Weights are stored with outputs contiguous,
but operands in registers have to be pairs of inputs, so unpacked tiles go through shared memory. No
GPU has run it yet: it is checked in interpret mode, and compiled to machine code for the H100.
"""

import functools
import math
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

    Cost: 2 T K O FLOPs with T padded to eights, declared to XLA with the stored bytes, x and the
      partial sums, each read or written once.
    """
    tokens, (inputs, outputs) = x.shape[0], matrix.shape
    unit, group = matrix.unit, matrix.group
    # The first inputs of a part's units, then the second ones, and so on.
    x = hopper.pad(x, 0, 8).reshape(-1, inputs // PART, PART // unit, unit)
    x = x.swapaxes(2, 3).reshape(-1, inputs)
    problem = Problem(
        tokens=x.shape[0],
        unit=unit,
        rows=matrix.rows,
        is_sparse=matrix.positions is not None,
        span=None if group == inputs else group // STEP,
        is_scaled=matrix.scales is not None,
        steps=inputs // STEP,
        splits=limits.splits(tokens, inputs, outputs, group, matrix.bits_per_weight),
        dtype=x.dtype,
    )
    values = matrix.values.reshape(-1, matrix.rows, outputs)
    stored = [a for a in (values, matrix.positions, matrix.scales) if a is not None]
    result = jax.ShapeDtypeStruct((problem.splits, outputs, problem.tokens), jnp.float32)
    (sums,) = hopper.call(
        "packed_matmul",
        functools.partial(kernel, problem=problem),
        [x, *stored],
        [result],
        grid={"tiles": outputs // COLUMNS, "splits": problem.splits},
        flops=2.0 * problem.tokens * math.prod(matrix.shape),
        bytes_accessed=hopper.bytes_of(x, *stored, result),
        computes="products",
        num_threads=CONSUMERS + 1,
    )
    return sums.sum(axis=0).T[:tokens]


def kernel(x, values, *refs, problem: Problem):
    """The body of one thread block; arguments are arrays in device memory.

    Args:
      x: [tokens, inputs], permuted.
      values: [units, rows, outputs].
      refs: positions [units, outputs] if sparse; scales [groups, outputs] if scaled; then the
        result [splits, outputs, tokens].
    """
    *stored, out = refs
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

        def sums_of_groups():
            def add(g, total):
                return total + scaled_sums_of(g * span, span, first + g)

            zeros = plgpu.layout_cast(jnp.zeros((COLUMNS, problem.tokens), jnp.float32), SUMS)
            return lax.fori_loop(0, end - first, add, zeros)

        def compute():
            total = scaled_sums_of(0, steps, 0) if problem.span is None else sums_of_groups()

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
        plgpu.SMEM((COLUMNS, problem.tokens), jnp.float32),
        plgpu.Barrier(),
        collective_axes="warpgroup",
    )


def read(packed):
    """Load a slab of packed bytes."""
    return plgpu.load(packed, layout=PACKED, optimized=False)
