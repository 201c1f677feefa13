"""The carry of one thread block, from device memory and back with what was added.

The old output is loaded into the memory that keys and values no longer need, all of it at once,
while the last block is still being multiplied, and stored from there: nothing waits for a copy
alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.chip import ROWS
from parallax.kernels.ring_attention.mosaic_parts import LOG2_E, ROW, SCORES, State, finite, per_row
from parallax.kernels.ring_attention.tiles import CHUNK

WARPGROUPS = 2


class Carries(NamedTuple):
    """The carry in device memory: o [B, H, L, V], m and l [B, H, L padded to whole blocks]."""

    o: Any
    m: Any
    l: Any


class CarryTile(NamedTuple):
    """The 64 rows and the output columns of one warpgroup."""

    batch: Any
    head: Any
    row: Any
    column: Any
    columns: int

    @property
    def rows(self) -> tuple:
        return self.batch, self.head, pl.ds(self.row, ROWS)

    def chunks(self, half: int) -> list[tuple]:
        """Return indices of o for the half that uses the memory of the keys (0) or values (1)."""
        count = self.columns // CHUNK // 2
        starts = range(half * count * CHUNK, (half + 1) * count * CHUNK, CHUNK)
        return [(*self.rows, pl.ds(self.column + x, CHUNK)) for x in starts]


def memory(columns: int) -> Any:
    """Return memory for half of both warpgroups' columns, `columns` each, over keys or values."""
    shape = (WARPGROUPS, columns // CHUNK // 2, ROWS, CHUNK)
    return plgpu.SMEM(shape, "float32", transforms=hopper.transforms("float32"))


def barriers(columns: int) -> Any:
    """Return a barrier per half and warpgroup: [half * WARPGROUPS + warpgroup]."""
    return plgpu.Barrier(num_arrivals=columns // CHUNK // 2, num_barriers=2 * WARPGROUPS)


def rows_memory(tiles: int) -> Any:
    """Return memory for m and l of a number of 64-row tiles. Its barriers are `rows_barriers`."""
    return plgpu.SMEM((tiles, 2, ROWS), "float32")


def rows_barriers(tiles: int) -> Any:
    return plgpu.Barrier(num_arrivals=2, num_barriers=tiles)


def start(old: Carries, carry_tile: CarryTile, memory, arrived, copies: Any = True) -> State:
    """Return the state before any block: nothing added, maxima and sums of the carry.

    Args:
      memory, arrived: memory and barrier of this tile's rows. copies: whether this warpgroup loads
        them: true on one of those that share them.
    """

    @pl.when(copies)
    def _():
        for x, source in enumerate((old.m, old.l)):
            plgpu.copy_gmem_to_smem(source.at[carry_tile.rows], memory.at[x], arrived)

    plgpu.barrier_wait(arrived)
    m, l = (plgpu.load(memory.at[x], layout=ROW, optimized=False) for x in range(2))
    acc = jnp.zeros((ROWS, carry_tile.columns), jnp.float32)
    return State(plgpu.layout_cast(acc, SCORES), m * LOG2_E, l)


def prefetch(old: Carries, carry_tile: CarryTile) -> None:
    """Prefetch the old output from device memory to L2, for `load`."""
    plgpu.async_prefetch(old.o.at[(*carry_tile.rows, pl.ds(carry_tile.column, carry_tile.columns))])


def load(old: Carries, carry_tile: CarryTile, half: int, warpgroup: int, memory, arrived) -> None:
    """Start the copies of one half, whose memory must be free."""
    for x, piece in enumerate(carry_tile.chunks(half)):
        plgpu.copy_gmem_to_smem(
            old.o.at[piece], memory.at[warpgroup, x], arrived.at[half * WARPGROUPS + warpgroup]
        )


def add_and_store(
    new: Carries, carry_tile: CarryTile, state: State, m_old: jax.Array, warpgroup, memories,
    arrived, rows_memory, copies_rows: Any = True,
) -> None:  # fmt: skip
    """Write the new carry. Copies stop at the last row of o: none beyond is read or written.

    Args:
      state: the state of `start` with blocks added. m_old: the maxima of `start`.
      memories: memory of both halves of o. rows_memory, copies_rows: as in `start`.
    """

    @pl.when(copies_rows)
    def _():
        rows_memory[0] = state.m * (1 / LOG2_E)
        rows_memory[1] = state.l
        plgpu.commit_smem()
        for x, target in enumerate((new.m, new.l)):
            plgpu.copy_smem_to_gmem(rows_memory.at[x], target.at[carry_tile.rows])

    keep = jnp.exp2(m_old - finite(state.m))
    start = 0
    for half, memory in enumerate(memories):
        pieces = carry_tile.chunks(half)
        plgpu.barrier_wait(arrived.at[half * WARPGROUPS + warpgroup])
        for x in range(len(pieces)):
            o = plgpu.load(memory.at[warpgroup, x], layout=SCORES)
            part = state.acc[:, start : start + CHUNK]
            memory[warpgroup, x] = o * per_row(keep, o.shape) + part
            start += CHUNK
        plgpu.commit_smem()
        for x, piece in enumerate(pieces):
            plgpu.copy_smem_to_gmem(memory.at[warpgroup, x], new.o.at[piece])
    plgpu.wait_smem_to_gmem(0)
