"""Parts of the kernel: its static parameters, the tile of each block, and integer unpacking."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels.cache_tiled_mlp.cut import Cut
from parallax.kernels.hopper import i32


class Stream(NamedTuple):
    """The static parameters of a kernel, all known when it is traced.

    Attributes:
      cut: partition of its own product. following: that of the next product, whose first steps it
        prefetches, or None.
      dtype: dtype of x.
      group: inputs that share a scale per column; weights are scaled when they are unpacked. 0: all
        inputs share one, and sums are scaled. None: no scales.
      biased: whether each matrix has a bias per column.
      activate: makes one array of the matrices' sums before it is written; None writes each.
    """

    cut: Cut
    following: Cut | None
    dtype: Any
    group: int | None
    biased: bool
    activate: Callable | None


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


def unpack(packed, scale, dtype):
    """Load a tile of integers [64, columns] from shared memory as `dtype`, scaled per column."""
    layout = unpacking(packed.shape[1])
    # int8 is exact in bfloat16, the only dtype to which the conversion takes few instructions.
    values = plgpu.load(packed, layout=layout).astype(jnp.bfloat16)
    if scale is not None:
        scale = plgpu.load(scale, layout=layout.reduce(0), optimized=False)
        values = values.astype(jnp.float32) * lax.broadcast_in_dim(scale, values.shape, [1])
    elif dtype == jnp.float16:
        values = values.astype(jnp.float32)
    return values.astype(dtype)


def unpacking(columns: int):
    """Return the register layout of a [64, columns] tile of integers.

    A thread holds 8 neighbours, so that neither reading them nor writing them as 16 bits has
    shared-memory bank conflicts.
    """
    lanes = columns // 8
    rows = 32 // lanes
    tiling = plgpu.Tiling(((4 * rows, columns), (rows, columns), (8,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1)
