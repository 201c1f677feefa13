"""The backward kernel: a producer warpgroup streams blocks past a tile, two consumers multiply.

With queries in the tile it makes dq, and blocks are of keys and values; with keys in the tile it
makes dv and dk, and blocks are of queries and d_out. S = tile_1 block_1^T, dP = tile_2 block_2^T.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.chip import ROWS
from parallax.kernels.ring_attention import mosaic_backward_parts as parts
from parallax.kernels.ring_attention.backward_tiles import CHUNK, WIDE, Pass
from parallax.kernels.ring_attention.mosaic_backward_parts import Stage, Work
from parallax.kernels.ring_attention.mosaic_parts import SCORES, Problem

PRODUCER = 2


class Memory(NamedTuple):
    """Shared memory and its barriers.

    Attributes:
      tile, tile_full: both arrays of the tile, [consumers, pieces, 64, columns].
      ring_1, ring_2: blocks in pieces of columns; with keys in the tile, sums beside block_1.
      exchange, ready, taken: of a pair: a block of P (or dS) float32, in pieces of columns.
    """

    tile: list[Any]
    tile_full: list[Any]
    ring_1: hopper.Ring
    ring_2: hopper.Ring
    exchange: Any = None
    ready: Any = None
    taken: Any = None


def kernel(*arrays, problem: Problem, cut: Pass) -> None:
    """The body of one thread block; arguments are arrays in device memory (`parts.work_of`)."""
    work, warpgroup = parts.work_of(arrays, problem, cut), lax.axis_index("warpgroup")

    def scope(memory: Memory):
        def role(run: Callable, registers: int, action: Any):
            plgpu.set_max_registers(registers, action=action)
            run(work, memory)

        consumer = functools.partial(role, registers=hopper.COMPUTE_REGISTERS, action="increase")
        pl.when(warpgroup == PRODUCER)(lambda: role(produce, hopper.LOADER_REGISTERS, "decrease"))
        if cut.pair:
            pl.when(warpgroup == 0)(lambda: consumer(consume_scores))
            pl.when(warpgroup == 1)(lambda: consumer(consume_gradients))
        else:
            pl.when(warpgroup != PRODUCER)(lambda: consumer(consume))

    pl.run_scoped(scope, _memory(work), collective_axes="warpgroup")


def _memory(work: Work) -> Memory:
    problem, cut, sums = work.problem, work.cut, len(work.sums)
    inputs = functools.partial(hopper.swizzled, dtype=problem.dtype)
    (pieces_1, columns_1), (_, columns_2) = pieces = cut.pieces(problem.width)
    stages_1, stages_2 = cut.stages[0] * pieces_1, cut.stages[1]
    own = 1 if cut.pair else 2  # consumers with rows of their own
    stage_1 = Stage(
        inputs((stages_1, cut.block, columns_1)),
        plgpu.SMEM((stages_1, sums, cut.block), "float32") if cut.by_keys else None,
        plgpu.SMEM((stages_1, cut.block), "int32") if work.ids else None,
    )
    copies = 1 + sums * cut.by_keys + bool(work.ids)
    memory = Memory(
        [inputs((own, n, ROWS, columns)) for n, columns in pieces[:sums]],
        [plgpu.Barrier(num_arrivals=n, num_barriers=own) for n, _ in pieces[:sums]],
        hopper.ring(stage_1, stages_1, consumers=2, copies=copies, cluster=cut.cluster),
        hopper.ring(
            Stage(inputs((stages_2, cut.block, columns_2))), stages_2,
            consumers=1 if cut.halves else 2, cluster=cut.cluster,
        ),
    )  # fmt: skip
    if not cut.pair:
        return memory
    exchange = hopper.swizzled((cut.block // CHUNK, ROWS, CHUNK), "float32")
    return memory._replace(exchange=exchange, ready=plgpu.Barrier(), taken=plgpu.Barrier())


def produce(work: Work, memory: Memory) -> None:
    """Copy all blocks, in the order of use."""
    cut, ring_1, ring_2 = work.cut, memory.ring_1, memory.ring_2
    (pieces_1, columns_1), (pieces_2, columns_2) = cut.pieces(work.problem.width)
    # In a cluster each thread block copies a share to all of them.
    axes = hopper.CLUSTER if cut.cluster > 1 else None
    copy = functools.partial(plgpu.copy_gmem_to_smem, collective_axes=axes)

    @pl.loop(0, work.steps)
    def _(j):
        head, row = work.block(j)
        rows = pl.ds(row, cut.block)

        def fill_1(x: int):
            def copies(stage, full):
                columns = pl.ds(x * columns_1, columns_1)
                copy(work.blocks[0].at[work.batch, rows, head, columns], stage.block, full)
                for y, source in enumerate(work.sums if cut.by_keys else ()):
                    copy(source.at[work.batch, head, rows], stage.sums.at[y], full)
                if work.ids:
                    copy(work.ids[1].at[work.batch, rows], stage.ids, full)

            ring_1.fill(j * pieces_1 + x, copies)

        def fill_2(x: int):
            def copies(stage, full):
                columns = pl.ds((work.part * pieces_2 + x) * columns_2, columns_2)
                copy(work.blocks[1].at[work.batch, rows, head, columns], stage.block, full)

            ring_2.fill(j * pieces_2 + x, copies)

        # A pair frees block_1 last: what fits of block_2 comes before the next.
        early = min(ring_2.stages, pieces_2) if cut.pair else 0
        for x in range(early):
            fill_2(x)
        for x in range(pieces_1):
            fill_1(x)
        for x in range(early, pieces_2):
            fill_2(x)

    ring_1.drain(work.steps * pieces_1)
    ring_2.drain(work.steps * pieces_2)


def consume(work: Work, memory: Memory) -> None:
    """Compute all gradients of 64 rows."""
    cut, dtype, ring_1, ring_2 = work.cut, work.problem.dtype, memory.ring_1, memory.ring_2
    warpgroup, arrays = lax.axis_index("warpgroup"), range(len(work.sums))
    row = work.row + warpgroup * ROWS
    tile_1, *tile_2 = _fetch(work, memory, row, arrays, warpgroup)
    lse, *delta = (parts.sums_of(work, x, row) for x in arrays)
    ids = parts.ids_of(work, row)

    def step(j, accs):
        scores, _ = parts.product(tile_1, ring_1, j)
        stage_1 = ring_1.at(j)
        scores = parts.hide(scores, work, row, work.block(j)[1], ids, stage_1.ids)

        def weights():
            return parts.weights(scores, lse(stage_1), work)

        dp: Any = None
        if cut.needs_dp:
            dp, p = parts.product(tile_2[0], ring_2, j, meanwhile=weights)
        else:
            ring_2.wait(j)
            p = weights()
        if "dv" not in cut.makes:
            ring_2.free(j)

        def multiply(*accs):
            for name, acc in zip(cut.makes, accs, strict=True):
                if name == "dv":
                    hopper.wgmma(acc, p.astype(dtype), ring_2.at(j).block)
                else:  # after dv: while the tensor cores work
                    ds = parts.gradient(p, dp, delta[0](stage_1), work)
                    hopper.wgmma(acc, ds.astype(dtype), stage_1.block)

        accs = hopper.accumulate(multiply, accs)
        if "dv" in cut.makes:
            ring_2.free(j)
        ring_1.free(j, loaded=work.threads_load)
        return accs

    columns = work.problem.width // cut.parts
    accs = lax.fori_loop(0, work.steps, step, tuple(parts.zeros(columns) for _ in cut.makes))
    for name, acc in zip(cut.makes, accs, strict=True):
        work.store(name, row, work.part * columns, acc)


def consume_scores(work: Work, memory: Memory) -> None:
    """Compute S and P of a pair's rows; then P by d_out, or dS by the first half of block_1."""
    cut, ring_1, ring_2 = work.cut, memory.ring_1, memory.ring_2
    (tile_1,) = _fetch(work, memory, work.row, (0,))
    lse, ids = parts.sums_of(work, 0, work.row), parts.ids_of(work, work.row)
    pieces = 1 + cut.halves

    def step(j, acc):
        scores, _ = parts.product(tile_1, ring_1, j)
        stage_1 = ring_1.at(j * pieces)
        scores = parts.hide(scores, work, work.row, work.block(j)[1], ids, stage_1.ids)
        p = parts.weights(scores, lse(stage_1), work)
        ring_1.free(j * pieces + (pieces - 1), loaded=work.threads_load)
        if cut.halves:
            _give(memory, p, memory.ready)
            plgpu.barrier_wait(memory.taken)  # and dS given
            acc = _add(work, acc, lambda: _take(memory), stage_1.block)
            ring_1.free(j * pieces)
        else:
            pl.when(j > 0)(lambda: plgpu.barrier_wait(memory.taken))  # the last P
            _give(memory, p, memory.ready)
            acc = _add(work, acc, lambda: p, ring_2.wait(j).block)
            ring_2.free(j)
        return acc

    acc = lax.fori_loop(0, work.steps, step, parts.zeros(WIDE))
    if not cut.halves:
        plgpu.barrier_wait(memory.taken)
    work.store(cut.makes[0], work.row, 0, acc)


def consume_gradients(work: Work, memory: Memory) -> None:
    """Compute dP and dS of a pair's rows; then dS by block_1, or by its second half."""
    cut, ring_1, ring_2 = work.cut, memory.ring_1, memory.ring_2
    (tile_2,) = _fetch(work, memory, work.row, (1,))
    delta, pieces = parts.sums_of(work, 1, work.row), 1 + cut.halves

    def step(j, acc):
        dp, _ = parts.product(tile_2, ring_2, j, free=True)
        stage_1 = ring_1.wait(j * pieces)
        plgpu.barrier_wait(memory.ready)
        ds = parts.gradient(_take(memory), dp, delta(stage_1), work)
        if cut.halves:
            _give(memory, ds, memory.taken)
            ring_1.free(j * pieces, loaded=cut.by_keys)
            stage_1 = ring_1.wait(j * pieces + 1)
        else:
            plgpu.barrier_arrive(memory.taken)
        acc = _add(work, acc, lambda: ds, stage_1.block)
        ring_1.free(j * pieces + (pieces - 1), loaded=cut.by_keys and not cut.halves)
        return acc

    acc = lax.fori_loop(0, work.steps, step, parts.zeros(WIDE))
    work.store(cut.makes[-1], work.row, WIDE * cut.halves, acc)


def _fetch(work: Work, memory: Memory, row, arrays: Iterable[int], consumer: Any = 0) -> list[Any]:
    """Load 64 rows of some arrays of the tile, each [pieces, 64, columns]."""
    for x in arrays:
        target, full = memory.tile[x].at[consumer], memory.tile_full[x].at[consumer]
        pieces, _, width = target.shape
        for c in range(pieces):
            columns = pl.ds(c * width, width)
            source = work.tile[x].at[work.batch, pl.ds(row, ROWS), work.head, columns]
            plgpu.copy_gmem_to_smem(source, target.at[c], full)
    for x in arrays:
        plgpu.barrier_wait(memory.tile_full[x].at[consumer])
    return [memory.tile[x].at[consumer] for x in arrays]


def _give(memory: Memory, scores: jax.Array, barrier) -> None:
    """Give a block of scores to the other consumer of a pair."""
    for x in range(memory.exchange.shape[0]):
        memory.exchange[x] = scores[:, x * CHUNK : (x + 1) * CHUNK]
    plgpu.barrier_arrive(barrier)


def _take(memory: Memory) -> jax.Array:
    count = memory.exchange.shape[0]
    pieces = [plgpu.load(memory.exchange.at[x], layout=SCORES) for x in range(count)]
    return jnp.concatenate(pieces, axis=1)


def _add(work: Work, acc: jax.Array, a: Callable[[], jax.Array], b) -> jax.Array:
    """Return acc + a() b, of a in registers and b in shared memory."""
    dtype = work.problem.dtype
    return hopper.accumulate(lambda ref: hopper.wgmma(ref, a().astype(dtype), b), (acc,))[0]
