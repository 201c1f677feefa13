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
from parallax.kernels.ring_attention.mosaic_parts import (
    LOG2_E,
    ROW,
    SCORES,
    finite,
    load,
    per_row,
    zeros,
)
from parallax.kernels.ring_attention.mosaic_tasks import Own

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


def start(old: Carries | None, sinks: Any, own: Own) -> State:
    """Return the state before any block: maxima and sums of the carry, or of the sink."""
    if old is not None:
        m, l = (load(x.at[own.rows], ROW) for x in (old.m, old.l))
        return State(zeros(own.columns), m * LOG2_E, l)
    first = (-jnp.inf, 0.0) if sinks is None else (sinks[own.head] * LOG2_E, 1.0)
    m, l = (plgpu.layout_cast(jnp.full((ROWS,), x, jnp.float32), ROW) for x in first)
    return State(zeros(own.columns), m, l)


def add(state: State, m_before: jax.Array, memories, full) -> State:
    """Add the old output, of maxima `m_before`, once both halves of it have arrived in memory."""
    keep, pieces, first = jnp.exp2(m_before - finite(state.m)), [], 0
    for memory, arrived in zip(memories, full, strict=True):
        plgpu.barrier_wait(arrived)
        for x in range(0, memory.shape[1], CHUNK):
            old = plgpu.load(memory.at[:, pl.ds(x, CHUNK)], layout=SCORES)
            pieces.append(old * per_row(keep, old.shape) + state.acc[:, first : first + CHUNK])
            first += CHUNK
    return state._replace(acc=jnp.concatenate(pieces, axis=1))


def write(new: Carries | Finished, own: Own, state: State, memories, *, writes_rows: Any) -> None:
    """Start to write the carry or the result: copies are under way that read `memories`.

    They stop at the last row of o: none beyond is written.

    Args:
      memories: of both halves of o; of the output, in its dtype.
      writes_rows: whether this warpgroup writes m and l: true on one of those that share them.
    """
    m = state.m * (1 / LOG2_E)
    if isinstance(new, Carries):
        rows, half = [(new.m, m), (new.l, state.l)], own.columns // 2
        values = [state.acc[:, :half], state.acc[:, half:]]
        targets = [new.o.at[own.half(x)] for x in range(2)]
    else:
        l = jnp.where(state.l == 0, 1.0, state.l)
        rows, values = [(new.lse, m + jnp.log(l))], [state.acc * per_row(1 / l, state.acc.shape)]
        targets = [new.out.at[own.queries]]

    @pl.when(writes_rows)
    def _():
        for ref, value in rows:
            hopper.store(ref.at[own.rows], value)

    for value, memory, target in zip(values, memories, targets, strict=True):
        memory[...] = value.astype(memory.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(memory, target)
