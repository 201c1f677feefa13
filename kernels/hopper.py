"""What all Mosaic kernels share: the call itself, rings of shared memory, products, layouts."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.xla_metadata import set_xla_metadata

from parallax.kernels.interpreting import interpreter

# Registers per thread in one producer and two consumer warpgroups: 24 + 2 x 240, as many as the
# 3 x 168 that a block starts with. With more, a warpgroup would wait for its registers forever.
LOADER_REGISTERS, COMPUTE_REGISTERS = 24, 240
# The axis of thread blocks that copy together what all of them read.
CLUSTER = "cluster"


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
            "parallax.parallel.ring_attention, which has one, or use implementation='xla' (in a "
            "strategy kernels=None)."
        )

    alone = jax.custom_vjp(run)
    alone.defvjp(refuse, refuse)
    return alone


class Ring(NamedTuple):
    """Stages of shared memory that a producer fills by copies and consumers free; see `ring`.

    Blocks are numbered from 0; block j is in stage j % stages.

    Attributes:
      memory: [stages, ...], or a tree of such arrays.
      full: a barrier per stage, which completes when the copies of its block have arrived.
      empty: a barrier per stage, which completes when all consumers have freed it, in a cluster
        those of all its thread blocks.
    """

    memory: Any
    full: Any
    empty: Any

    @property
    def stages(self) -> int:
        return self.full.shape[0]

    def stage(self, j) -> jax.Array:
        """Return the stage of block j."""
        return lax.rem(j, i32(self.stages)) + opaque_zero(j)

    def at(self, j) -> Any:
        """Return the memory of block j."""
        return jax.tree.map(lambda x: x.at[self.stage(j)], self.memory)

    def fill(self, j, copy: Callable[[Any, Any], None]) -> None:
        """Start the copies of block j, `copy(memory, full)`, once its stage is empty."""
        pl.when(j >= self.stages)(lambda: plgpu.barrier_wait(self.empty.at[self.stage(j)]))
        copy(self.at(j), self.full.at[self.stage(j)])

    def wait(self, j) -> Any:
        """Wait until block j has arrived, and return its memory."""
        plgpu.barrier_wait(self.full.at[self.stage(j)])
        return self.at(j)

    def free(self, j, *, loaded: bool = False) -> None:
        """Free block j for one consumer; `loaded`: by threads, not wgmma alone.

        Then a fence must come before the copy engine may overwrite it.
        """
        if loaded:
            plgpu.commit_smem()
        plgpu.barrier_arrive(self.empty.at[self.stage(j)])

    def drain(self, blocks) -> None:
        """Wait until all of the first `blocks` blocks are free: nothing arrives after that.

        In a cluster, no thread block may end before. The interpreter of JAX 0.11 also requires
        every arrival to be waited for.
        """

        @pl.loop(lax.max(blocks - self.stages, i32(0)), blocks)
        def _(j):
            plgpu.barrier_wait(self.empty.at[self.stage(j)])


def ring(memory: Any, stages: int, *, consumers: int, copies: int = 1, cluster: int = 1) -> Ring:
    """Return the scratch of a ring, for `pl.run_scoped`, which passes it on as a `Ring`.

    Args:
      memory: scratch of shape [stages, ...], or a tree of such.
      consumers: warpgroups that free each block. copies: copies that fill it.
      cluster: thread blocks that copy together, along the axis `CLUSTER`.
    """
    full = plgpu.Barrier(num_arrivals=copies, num_barriers=stages)
    if cluster == 1:
        return Ring(memory, full, plgpu.Barrier(num_arrivals=consumers, num_barriers=stages))
    empty = plgpu.ClusterBarrier(
        collective_axes=(CLUSTER,), num_arrivals=consumers, num_barriers=stages
    )
    return Ring(memory, full, empty)


class _Interpreted:
    """A value for the interpreter, which has no accumulators that start with one."""

    def __init__(self, value: jax.Array):
        self.value = value


def wgmma(acc: Any, a: Any, b: Any) -> None:
    """Issue acc += a @ b, with a in shared memory or registers and b in shared memory."""
    if not isinstance(acc, _Interpreted):
        plgpu.wgmma(acc, a, b)
        return
    left, right = (x[...].astype(jnp.float32) for x in (a, b))
    plgpu.commit_smem()  # a fence for what threads have read; wgmma needs none
    acc.value += jnp.dot(left, right)


def product(shape: tuple[int, int], multiply: Callable[[Any], None]) -> jax.Array:
    """Return the sum of the products that `multiply(acc)` issues by `wgmma`, of this shape."""

    def run(acc):
        multiply(acc)
        return acc[...]

    return pl.run_scoped(run, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))


def accumulate(
    multiply: Callable, accs: Sequence[jax.Array], beside: Sequence[jax.Array] = ()
) -> tuple[jax.Array, ...]:
    """Add products to arrays in registers; return these, once complete, and what ran beside them.

    Args:
      multiply: takes an accumulator per array and issues products by `wgmma`. It returns the arrays
        that it computes meanwhile, if any.
      accs: [64, n] float32 each, as wgmma's results lie.
      beside: other values, in the shapes and layouts of what `multiply` returns.
    """
    if interpreter() is not None:
        refs = [_Interpreted(x) for x in accs]
        returned = multiply(*refs) or ()
        return (*(x.value for x in refs), *returned)

    def run(refs):
        returned = multiply(*refs[: len(accs)]) or ()
        for ref, value in zip(refs[len(accs) :], returned, strict=True):
            ref[...] = value

    start: Any = (*map(plgpu.WGMMAAccumulatorRef.init, accs), *beside)
    return pl.run_state(run)(start)


def opaque_zero(j) -> jax.Array:
    """Return 0 for every j below 2^30, which the compiler cannot know.

    Added to an index it makes the compiler compute addresses of operands again. Those that do not
    change it would compute once and keep: 64 bits for every 16 columns, more registers than exist.
    """
    return lax.shift_right_logical(i32(j), i32(30))


def store(ref, value: jax.Array) -> None:
    """Write to device memory straight from registers: a few values at a block's end."""
    if hasattr(plgpu, "store"):
        plgpu.store(ref, value, optimized=False)
    else:  # JAX 0.11
        ref[...] = value


def bytes_of(*arrays) -> int:
    """Compute the bytes of arrays, each read or written once."""
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in arrays)


def i32(x) -> jax.Array:
    """Return an index as int32: the kernel language requires one dtype for all indices."""
    return jnp.asarray(x, jnp.int32)


def swizzled(shape: Sequence[int], dtype, row_bytes: int = 128) -> Any:
    """Return shared memory that wgmma and swizzled copies use: swizzled 8-row tiles of 128 bytes.

    `row_bytes` of 32 or 64 are for narrower arrays.
    """
    columns = row_bytes // jnp.dtype(dtype).itemsize
    # pyright takes a method of these classes for abstract.
    tiling = plgpu.TilingTransform((8, columns))  # pyright: ignore[reportAbstractUsage]
    swizzle = plgpu.SwizzleTransform(row_bytes)  # pyright: ignore[reportAbstractUsage]
    return plgpu.SMEM(tuple(shape), dtype, transforms=(tiling, swizzle))


def bytes_layout(columns: int) -> Any:
    """Return the layout of packed rows [.., columns] that a warpgroup unpacks to 16 bits.

    A thread holds 8 neighbours, so that neither reading them nor writing them as 16 bits has
    shared-memory bank conflicts.
    """
    rows = 32 * 8 // columns
    tiling = plgpu.Tiling(((4 * rows, columns), (rows, columns), (8,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1)


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
