"""Helpers that all Mosaic kernels share: registers, memory layouts, and the call itself."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.xla_metadata import set_xla_metadata

from parallax.kernels.interpreting import interpreter

# Registers per thread in one producer and two consumer warpgroups: 24 + 2 x 240, as many as the
# 3 x 168 that a block starts with. With more, a warpgroup would wait for its registers forever.
LOADER_REGISTERS, COMPUTE_REGISTERS = 24, 240


def call(
    name: str,
    body: Callable,
    operands: Sequence[jax.Array],
    results: Sequence[jax.ShapeDtypeStruct],
    *,
    grid: Mapping[str, int],
    flops: float,
    bytes_accessed: float,
    computes: Literal["attention", "products"] = "attention",
    num_threads: int = 3,
    **arguments,
) -> tuple[jax.Array, ...]:
    """Call a Mosaic kernel; inside `interpreting.interpreted()` it is interpreted.

    Args:
      name: the kernel's name in profilers and compilers.
      body: body of one thread block; takes the operands and the results as arrays in device memory.
      results: shapes and dtypes. They vary over the mesh axes that any operand varies over.
      grid: number of thread blocks, by the names of the grid's axes.
      flops, bytes_accessed: the cost, declared to XLA, which cannot see inside.
      computes: what the FLOPs are, also declared.
      num_threads: warpgroups per block: the axis "warpgroup".
      arguments: further arguments of `plgpu.kernel`.
    """

    def named(*refs):
        body(*refs)

    named.__name__ = name
    operands = vary_alike(*operands)
    kind = jax.typeof(operands[0]).manual_axis_type
    parameters = interpreter()
    if parameters is not None:
        arguments |= {"interpret": parameters}
    declared = {"cost_flops": float(flops), "cost_bytes": float(bytes_accessed)}
    run = plgpu.kernel(
        named,
        out_type=[jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=kind) for x in results],
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=num_threads,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **arguments,
    )
    with set_xla_metadata(kernel_name=name, cost_of=computes, **declared):
        out = _without_gradient(name, run)(*operands)
    # The call loses the axes over which its results vary; an operand restores them.
    return vary_alike(*out, operands[0])[:-1]


def _without_gradient(name: str, run: Callable) -> Callable:
    """Return `run` with a gradient that raises an error naming what has one."""

    def refuse(*_):
        raise NotImplementedError(
            f"{name}: a kernel has no gradient of its own. Differentiate "
            "parallax.parallel.ring_attention, which has one, or use implementation='xla'."
        )

    alone = jax.custom_vjp(run)
    alone.defvjp(refuse, refuse)
    return alone


def bytes_of(*arrays) -> int:
    """Compute the bytes of arrays, each read or written once."""
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in arrays)


def i32(x) -> jax.Array:
    """Return an index as int32: the kernel language requires one dtype for all indices."""
    return jnp.asarray(x, jnp.int32)


def transforms(dtype, row_bytes: int = 128) -> tuple:
    """Return the transforms of shared memory that wgmma reads: swizzled 8-row tiles of 128 bytes.

    `row_bytes` of 32 or 64 are for narrower arrays.
    """
    columns = row_bytes // jnp.dtype(dtype).itemsize
    # pyright takes a method of these classes for abstract.
    tiling = plgpu.TilingTransform((8, columns))  # pyright: ignore[reportAbstractUsage]
    return tiling, plgpu.SwizzleTransform(row_bytes)  # pyright: ignore[reportAbstractUsage]


def pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Pad `axis` of `x` with zeros to a multiple; a copy unless the size is a multiple already."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths)


def vary_alike(*arrays: Any) -> tuple:
    """Return all arrays typed as varying over the mesh axes that any of them varies over."""
    axes = [frozenset(jax.typeof(x).manual_axis_type.varying) for x in arrays]
    union = frozenset().union(*axes)
    return tuple(
        lax.pcast(x, tuple(sorted(union - own)), to="varying") if union - own else x
        for x, own in zip(arrays, axes, strict=True)
    )
