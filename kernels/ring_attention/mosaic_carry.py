"""The two ends of a warpgroup's attention: what it starts from and what it writes.

A step with a carry adds its output at the end: it is loaded into the memory that keys and values no
longer need while the last block is still being multiplied, so that little waits for it. A last step
writes the normalised output instead of a carry, through the memory of the queries.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.chip import ROWS
from parallax.kernels.ring_attention.mosaic_parts import LOG2_E, ROW, SCORES, finite, per_row

WARPGROUPS = 2
# Columns of the old output in registers at a time: 128 bytes, one swizzle.
CHUNK = 32


class State(NamedTuple):
    """The attention of one warpgroup's rows so far: [64, columns], [64] and [64] float32."""

    acc: jax.Array
    m: jax.Array
    l: jax.Array


class Carries(NamedTuple):
    """The carry in device memory: o [B, H, L, V], m and l [B, H, L padded to whole blocks]."""

    o: Any
    m: Any
    l: Any


class Finished(NamedTuple):
    """The result in device memory: out [B, L, H, V] and lse [B, H, L padded to whole blocks]."""

    out: Any
    lse: Any


class Own(NamedTuple):
    """The 64 rows and the columns of one warpgroup, as indices of arrays in device memory."""

    batch: Any
    head: Any
    row: Any
    column: Any
    columns: int

    @property
    def rows(self) -> tuple:
        """Index of [B, H, L, ...]."""
        return self.batch, self.head, pl.ds(self.row, ROWS)

    @property
    def queries(self) -> tuple:
        """Index of [B, L, H, K]."""
        columns = pl.ds(self.column, self.columns)
        return self.batch, pl.ds(self.row, ROWS), self.head, columns

    def half(self, x: int) -> tuple:
        """Index of half `x` of o, [B, H, L, V]."""
        half = self.columns // 2
        return *self.rows, pl.ds(self.column + x * half, half)


def memory(columns: int) -> Any:
    """Return memory for half of each warpgroup's columns of o, over the keys' or the values'."""
    return hopper.swizzled((WARPGROUPS, ROWS, columns // 2), "float32")


def start(old: Carries | None, sinks: Any, own: Own) -> State:
    """Return the state before any block: maxima and sums of the carry, or of the sink."""
    acc = jnp.zeros((ROWS, own.columns), jnp.float32)
    if old is not None:
        m, l = (plgpu.load(x.at[own.rows], layout=ROW, optimized=False) for x in (old.m, old.l))
        m = m * LOG2_E
    elif sinks is not None:
        m, l = _rows(sinks[own.head] * LOG2_E), _rows(1.0)
    else:
        m, l = _rows(-jnp.inf), _rows(0.0)
    return State(plgpu.layout_cast(acc, SCORES), m, l)


def prefetch(old: Any, own: Own) -> None:
    """Prefetch the old output from device memory to L2, for `load`."""
    plgpu.async_prefetch(old.o.at[(*own.rows, pl.ds(own.column, own.columns))])


def load(old: Carries | None, own: Own, half: int, memory, ready) -> None:
    """Start the copy of half of the old output to memory that is free, or say that it is."""
    if old is None:
        plgpu.barrier_arrive(ready)
    else:
        plgpu.copy_gmem_to_smem(old.o.at[own.half(half)], memory, ready)


def add(acc: jax.Array, keep: jax.Array, memories, ready) -> jax.Array:
    """Add to acc the old output times `keep`, a factor per row."""
    pieces, first = [], 0
    for memory, arrived in zip(memories, ready, strict=True):
        plgpu.barrier_wait(arrived)
        for x in range(0, memory.shape[1], CHUNK):
            old = plgpu.load(memory.at[:, pl.ds(x, CHUNK)], layout=SCORES)
            pieces.append(old * per_row(keep, old.shape) + acc[:, first : first + CHUNK])
            first += CHUNK
    return jnp.concatenate(pieces, axis=1)


def write(new: Carries, own: Own, state: State, memories, *, writes_rows: Any) -> None:
    """Write a carry. Copies stop at the last row of o: none beyond is written.

    Args:
      memories: of both halves of o. writes_rows: whether this warpgroup writes m and l: true on
        one of those that share them.
    """

    @pl.when(writes_rows)
    def _():
        hopper.store(new.m.at[own.rows], state.m * (1 / LOG2_E))
        hopper.store(new.l.at[own.rows], state.l)

    half = own.columns // 2
    for x, memory in enumerate(memories):
        memory[...] = state.acc[:, x * half : (x + 1) * half]
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(memory, new.o.at[own.half(x)])
    plgpu.wait_smem_to_gmem(0)


def finish(new: Finished, own: Own, state: State, memory, *, writes_rows: Any) -> None:
    """Write the normalised output through `memory` [64, columns], of its dtype, and lse."""
    l = jnp.where(state.l == 0, 1.0, state.l)

    @pl.when(writes_rows)
    def _():
        hopper.store(new.lse.at[own.rows], state.m * (1 / LOG2_E) + jnp.log(l))

    memory[...] = (state.acc * per_row(1 / l, state.acc.shape)).astype(memory.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(memory, new.out.at[own.queries])
    plgpu.wait_smem_to_gmem(0)


def rescale(m_old: jax.Array, m: jax.Array) -> jax.Array:
    """Return the factor of what was summed with maxima `m_old`, for sums with maxima `m`."""
    return jnp.exp2(m_old - finite(m))


def _rows(value) -> jax.Array:
    return plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), ROW)
