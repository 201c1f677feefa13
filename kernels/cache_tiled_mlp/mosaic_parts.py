"""What the kernel is made for, where its blocks work, and how integers are unpacked."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels.cache_tiled_mlp.cut import Cut
from parallax.kernels.hopper import i32


class Stream(NamedTuple):
    """What a kernel is made for; all of it known when it is traced.

    Attributes:
      cut: of its own product. following: of the next one, whose first steps it asks for, or None.
      dtype: of x.
      group: inputs that share a scale with each column: weights are scaled as they are unpacked.
        0: all of them: sums are. None: no scales.
      biased: each matrix has a bias for every column.
      activate: makes one array of the matrices' sums, before they are written; None writes each.
    """

    cut: Cut
    following: Cut | None
    dtype: Any
    group: int | None
    biased: bool
    activate: Callable | None


class Place(NamedTuple):
    """Of a block of threads: what it multiplies. All but the columns' `tile` are first indices."""

    group: jax.Array
    tile: jax.Array
    split: jax.Array
    step: jax.Array
    steps: jax.Array


def place(cut: Cut, block) -> Place:
    """Groups of tokens are innermost: blocks that run at a time share a slab."""
    tile = lax.div(block, i32(cut.groups))
    split = lax.div(tile, i32(cut.tiles))
    first, end = (lax.div((split + i) * cut.steps, i32(cut.splits)) for i in (0, 1))
    group = lax.rem(block, i32(cut.groups))
    return Place(group, lax.rem(tile, i32(cut.tiles)), split, first, end - first)


def unpack(narrow, scale, dtype):
    """A tile of integers [64, columns] in shared memory as `dtype`, by a scale a column if any."""
    layout = unpacking(narrow.shape[1])
    # Integers of 8 bits are exact in bfloat16, the only dtype that they become in few instructions.
    values = plgpu.load(narrow, layout=layout).astype(jnp.bfloat16)
    if scale is not None:
        scale = plgpu.load(scale, layout=layout.reduce(0), optimized=False)
        values = values.astype(jnp.float32) * lax.broadcast_in_dim(scale, values.shape, [1])
    elif dtype == jnp.float16:
        values = values.astype(jnp.float32)
    return values.astype(dtype)


def unpacking(columns: int):
    """Registers of a [64, columns] tile of integers: 8 neighbours each, so that neither reading
    them nor writing them as 16 bits meets a bank of shared memory twice."""
    lanes = columns // 8
    rows = 32 // lanes
    tiling = plgpu.Tiling(((4 * rows, columns), (rows, columns), (8,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1)
