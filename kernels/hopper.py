"""What every Mosaic kernel here shares: registers, layouts of memory, and the call itself."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.xla_metadata import set_xla_metadata

from parallax.kernels.interpreting import interpreter

# Registers of a thread in one loading and two computing warpgroups: 24 + 2 x 240, as many as the
# 3 x 168 that a block starts with. With more, a warpgroup would wait for its own for ever.
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
    """Runs a kernel, interpreted inside `interpreting.interpreted()`.

    Args:
      name: what profilers and compilers call it.
      body: of one block of threads; takes the operands and the results as arrays in device memory.
      results: shapes and dtypes. They differ over the mesh axes that any operand differs over.
      grid: blocks of threads, by the names of its axes.
      flops, bytes_accessed: what it costs, declared to XLA, which cannot see inside.
      computes: what the FLOPs are, declared as well.
      num_threads: warpgroups of a block: the axis "warpgroup".
      arguments: more of `plgpu.kernel`'s.
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
    # The call forgets over which axes its results differ; an operand says it again.
    return vary_alike(*out, operands[0])[:-1]


def _without_gradient(name: str, run: Callable) -> Callable:
    """`run`, whose gradient says what has one."""

    def refuse(*_):
        raise NotImplementedError(
            f"{name}: a kernel has no gradient of its own. Differentiate "
            "parallax.parallel.ring_attention, which has one, or use implementation='xla'."
        )

    alone = jax.custom_vjp(run)
    alone.defvjp(refuse, refuse)
    return alone


def bytes_of(*arrays) -> int:
    """Of each, read or written once."""
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in arrays)


def i32(x) -> jax.Array:
    """An index: the kernels' language wants them all alike."""
    return jnp.asarray(x, jnp.int32)


def transforms(dtype, row_bytes: int = 128) -> tuple:
    """Of shared memory that wgmma or its layout reads: 8-row tiles of 128 bytes, swizzled.

    `row_bytes` of 32 or 64 are for narrower arrays.
    """
    columns = row_bytes // jnp.dtype(dtype).itemsize
    # pyright takes a method of theirs for abstract.
    tiling = plgpu.TilingTransform((8, columns))  # pyright: ignore[reportAbstractUsage]
    return tiling, plgpu.SwizzleTransform(row_bytes)  # pyright: ignore[reportAbstractUsage]


def pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """`x` with zeros at the end of `axis`, up to a multiple: a copy, unless it is one already."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths)


def vary_alike(*arrays: Any) -> tuple:
    """All arrays typed as differing over the mesh axes that any of them differs over."""
    axes = [frozenset(jax.typeof(x).manual_axis_type.varying) for x in arrays]
    union = frozenset().union(*axes)
    return tuple(
        lax.pcast(x, tuple(sorted(union - mine)), to="varying") if union - mine else x
        for x, mine in zip(arrays, axes, strict=True)
    )
