"""The shared memory of the forward kernel's thread blocks, and its barriers."""

from typing import Any, NamedTuple

from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.chip import ROWS
from parallax.kernels.hopper import Ring
from parallax.kernels.ring_attention.mosaic_parts import Problem
from parallax.kernels.ring_attention.tiles import Tile


class Scratch(NamedTuple):
    """The shared memory of a thread block; what a tiling does not use is None.

    Attributes:
      q, q_full: queries of each warpgroup, and the barriers of their copies; stage * warpgroups +
        warpgroup.
      keys, values: rings of (block, ids if there are any); in a union with memory of half of the
        output. Block j is number j, or 2 j + w of the wide tilings' halves.
      exchange: wide: partial scores of each warpgroup. exchange_full, exchange_empty: barriers on
        which both warpgroups arrive, once they have written and once they have read.
      turn: a barrier per warpgroup, which completes when it may issue products.
      old_full: a barrier per half of the output and warpgroup: its memory is free, with the old
        output in it, if there is one. [half * 2 + warpgroup].
    """

    q: Any
    q_full: Any
    values: Ring
    exchange: Any
    keys: Ring  # behind: what follows its ids would be padded to the next kilobyte
    exchange_full: Any
    exchange_empty: Any
    turn: Any
    old_full: Any


def scratch_of(problem: Problem, tile: Tile, columns: int) -> Scratch:
    """Return the shared memory of a block, for `pl.run_scoped`."""
    stages = tile.stages * tile.halves

    def ring(ids=()):
        blocks = hopper.swizzled((stages, tile.keys, columns), problem.dtype)
        half_of_old = hopper.swizzled((tile.warpgroups, ROWS, columns // 2), "float32")
        return hopper.ring(
            (plgpu.RefUnion(blocks, half_of_old), *ids), stages,
            consumers=tile.warpgroups // tile.halves, copies=1 + len(ids), cluster=tile.cluster,
        )  # fmt: skip

    # The wide tilings have no memory left: their ids come from device memory.
    in_ring = problem.has_segments and not tile.wide
    ids = (plgpu.SMEM((stages, tile.keys), "int32"),) if in_ring else ()
    both = plgpu.Barrier(num_arrivals=tile.warpgroups)
    exchange = hopper.swizzled((tile.warpgroups, ROWS, tile.keys), "float32")
    return Scratch(
        q=hopper.swizzled((tile.q_stages * tile.warpgroups, ROWS, columns), problem.dtype),
        q_full=plgpu.Barrier(num_barriers=tile.q_stages * tile.warpgroups),
        values=ring(),
        exchange=exchange if tile.wide else None,
        keys=ring(ids),
        exchange_full=both if tile.wide else None,
        exchange_empty=both if tile.wide else None,
        turn=plgpu.Barrier(num_barriers=tile.warpgroups),
        old_full=plgpu.Barrier(num_barriers=2 * tile.warpgroups),
    )


def apart(ring: Ring) -> tuple[Ring, Any]:
    """Return a ring without the union of its memory, and the other memory of the union."""
    (blocks, old), *ids = ring.memory
    return ring._replace(memory=(blocks, *ids)), old
