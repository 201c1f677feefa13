"""The backward kernel: a producer warpgroup streams blocks past a tile, two consumers multiply.

With queries in the tile it makes dq, and blocks are of keys and values; with keys in the tile it
makes dv and dk, and blocks are of queries and d_out. S = tile_1 block_1^T, dP = tile_2 block_2^T.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.chip import ROWS
from parallax.kernels.hopper import Ring, i32, opaque_zero
from parallax.kernels.ring_attention.backward_tiles import CHUNK, WIDE, Pass
from parallax.kernels.ring_attention.mosaic_parts import (
    COLUMN,
    LOG2_E,
    ROW,
    SCORES,
    Problem,
    hide,
    load,
    zeros,
)

PRODUCER = 2


class Arrays(NamedTuple):
    """The operands in device memory.

    Attributes:
      q, k, v, d_out: [B, tokens, heads, K].
      lse, delta: [B, H, L] float32, lse in units of log2 and delta times the scale.
    """

    q: Any
    k: Any
    v: Any
    d_out: Any
    lse: Any
    delta: Any
    mask: Any = None  # MaskArrays, which each pass has its own of


class Stage(NamedTuple):
    """The memory of a stage of a ring: of block_2, `block` alone.

    Attributes:
      block: [rows, columns], a piece of the block.
      sums: lse and delta of the block's queries, [arrays, rows] float32.
      ids: segment ids of the block's tokens, [rows] int32.
    """

    block: Any
    sums: Any = None
    ids: Any = None


class Memory(NamedTuple):
    """Shared memory and its barriers.

    Attributes:
      tile, tile_full: both arrays of the tile, [consumers, pieces, 64, columns].
      ring_1, ring_2: blocks in pieces of columns; with keys in the tile, sums beside block_1.
      exchange, exchange_full, exchange_empty: a pair's block of P, float32, in pieces of columns,
        from the first to the second, which with `halves` gives dS back in its place.
    """

    tile: list[Any]
    tile_full: list[Any]
    ring_1: Ring
    ring_2: Ring
    exchange: Any = None
    exchange_full: Any = None
    exchange_empty: Any = None


def kernel(arrays: Arrays, results: dict[str, Any], *, problem: Problem, cut: Pass) -> None:
    """The body of one thread block; `results` are the gradients by name, [B, tokens, heads, K]."""
    warpgroup, dtype = lax.axis_index("warpgroup"), problem.dtype
    mask = arrays.mask
    sides = (arrays.q, arrays.d_out, mask.q_ids), (arrays.k, arrays.v, mask.kv_ids)
    (*tiles, tile_ids), (*blocks, block_ids) = sides[::-1] if cut.by_keys else sides
    sums = (arrays.lse, arrays.delta)[: cut.inputs]
    (pieces_1, columns_1), (pieces_2, columns_2) = cut.pieces(problem.width)

    batch, number = lax.axis_index("batch"), lax.axis_index("rows")
    head, part = (f(lax.axis_index("heads"), i32(cut.parts)) for f in (lax.div, lax.rem))
    if problem.is_causal and not cut.by_keys:  # the rows with the most work first
        number = lax.axis_size("rows") - 1 - number
    sight, first_row = mask.sight(problem, by_keys=cut.by_keys), number * cut.cluster_rows
    shared, others = mask.shared_of(batch, number), blocks[0].shape[1]
    first_block, visited = sight.visits(first_row, cut.cluster_rows, cut.block, others, shared)
    if cut.cluster > 1:
        first_row += lax.axis_index(hopper.CLUSTER) * cut.rows
    # With keys in the tile, a block of queries is one of each of their heads.
    heads = problem.heads_per_kv if cut.by_keys else 1
    first_head = head * heads if cut.by_keys else lax.div(head, i32(problem.heads_per_kv))
    # One at least, so that every barrier has a copy to wait for.
    steps = jnp.maximum(visited * heads, 1)

    def block_of(j) -> tuple[jax.Array, jax.Array]:
        """Return the head and the first row of block j."""
        row = (first_block + lax.div(j, i32(heads))) * cut.block
        return first_head + lax.rem(j, i32(heads)), row

    def produce(memory: Memory):
        """Copy all blocks, in the order of use."""
        ring_1, ring_2 = memory.ring_1, memory.ring_2
        # In a cluster each thread block copies a share to all of them.
        together: dict[str, Any] = {"collective_axes": hopper.CLUSTER} if cut.cluster > 1 else {}

        @pl.loop(0, steps)
        def _(j):
            head, row = block_of(j)
            rows = pl.ds(row, cut.block)

            def fill(ring: Ring, number, source, column: Any, columns: int):
                def copies(stage: Stage, full):
                    at = batch, rows, head, pl.ds(column, columns)
                    sources = [(source.at[at], stage.block)]
                    if stage.sums is not None:
                        of_queries = (x.at[batch, head, rows] for x in sums)
                        sources += [(x, stage.sums.at[y]) for y, x in enumerate(of_queries)]
                    if stage.ids is not None:
                        sources.append((block_ids.at[batch, rows], stage.ids))
                    for copied, target in sources:
                        plgpu.copy_gmem_to_smem(copied, target, full, **together)

                ring.fill(number, copies)

            def fill_2(x: int):
                column = (part * pieces_2 + x) * columns_2
                fill(ring_2, j * pieces_2 + x, blocks[1], column, columns_2)

            # A pair frees block_1 last: what fits of block_2 comes before the next.
            early = min(ring_2.stages, pieces_2) if cut.pair else 0
            for x in range(early):
                fill_2(x)
            for x in range(pieces_1):
                fill(ring_1, j * pieces_1 + x, blocks[0], x * columns_1, columns_1)
            for x in range(early, pieces_2):
                fill_2(x)

        ring_1.drain(steps * pieces_1)
        ring_2.drain(steps * pieces_2)

    def fetch(memory: Memory, row, inputs: Iterable[int], consumer: Any = 0) -> list[Any]:
        """Load 64 rows of some arrays of the tile, each [pieces, 64, columns]."""
        for x in inputs:
            target, full = memory.tile[x].at[consumer], memory.tile_full[x].at[consumer]
            pieces, _, width = target.shape
            for c in range(pieces):
                at = batch, pl.ds(row, ROWS), head, pl.ds(c * width, width)
                plgpu.copy_gmem_to_smem(tiles[x].at[at], target.at[c], full)
        for x in inputs:
            plgpu.barrier_wait(memory.tile_full[x].at[consumer])
        return [memory.tile[x].at[consumer] for x in inputs]

    def sums_of(x: int, row) -> Callable[[Stage], jax.Array]:
        """Return a function from a stage to lse (0) or delta (1) of each query of scores."""
        if cut.by_keys:
            return lambda stage: load(stage.sums.at[x], COLUMN)
        values = load(sums[x].at[batch, head, pl.ds(row, ROWS)], ROW)
        return lambda stage: values

    def per_query(values: jax.Array, shape) -> jax.Array:
        return lax.broadcast_in_dim(values, shape, [1 if cut.by_keys else 0])

    def weights(scores: jax.Array, lse: jax.Array) -> jax.Array:
        """Return P of a block of scores."""
        return jnp.exp2(scores * (problem.scale * LOG2_E) - per_query(lse, scores.shape))

    def gradient(p: jax.Array, dp: jax.Array, delta: jax.Array) -> jax.Array:
        """Return dS, the gradient of the unscaled scores. `delta` is scaled already."""
        return p * (dp * problem.scale - per_query(delta, p.shape))

    def visible(scores: jax.Array, row, j, stage: Stage, ids: Any) -> jax.Array:
        return hide(scores, sight, row, block_of(j)[1], ids, stage.ids)

    def ids_of(row) -> Any:
        """Return the segment ids of 64 rows of the tile; None without segments."""
        if not problem.has_segments:
            return None
        return load(tile_ids.at[batch, pl.ds(row, ROWS)], ROW)

    def add(acc: jax.Array, a: Callable[[], jax.Array], b) -> jax.Array:
        """Return acc + a() b, of a in registers and b in shared memory."""
        return hopper.accumulate(lambda ref: hopper.wgmma(ref, a().astype(dtype), b), (acc,))[0]

    def store(name: str, row, column, result: jax.Array) -> None:
        at = batch, pl.ds(row, ROWS), head, pl.ds(column, result.shape[1])
        results[name][at] = result

    # Whether threads, and not wgmma alone, read block_1's stages.
    threads_load = cut.by_keys or problem.has_segments

    def consume(memory: Memory):
        """Compute all gradients of 64 rows."""
        ring_1, ring_2 = memory.ring_1, memory.ring_2
        row, inputs = first_row + warpgroup * ROWS, range(cut.inputs)
        tile_1, *tile_2 = fetch(memory, row, inputs, warpgroup)
        lse, *delta = (sums_of(x, row) for x in inputs)
        ids = ids_of(row)

        def step(j, accs):
            scores, _ = _product(tile_1, ring_1, j)
            stage_1 = ring_1.at(j)
            scores = visible(scores, row, j, stage_1, ids)

            dp: Any = None
            if cut.needs_dp:
                dp, p = _product(
                    tile_2[0], ring_2, j, meanwhile=lambda: weights(scores, lse(stage_1))
                )
            else:
                ring_2.wait(j)
                p = weights(scores, lse(stage_1))
            if "dv" not in cut.makes:
                ring_2.free(j)

            def multiply(*accs):
                for name, acc in zip(cut.makes, accs, strict=True):
                    if name == "dv":
                        hopper.wgmma(acc, p.astype(dtype), ring_2.at(j).block)
                    else:  # after dv: while the tensor cores work
                        ds = gradient(p, dp, delta[0](stage_1))
                        hopper.wgmma(acc, ds.astype(dtype), stage_1.block)

            accs = hopper.accumulate(multiply, accs)
            if "dv" in cut.makes:
                ring_2.free(j)
            ring_1.free(j, loaded=threads_load)
            return accs

        columns = problem.width // cut.parts
        accs = lax.fori_loop(0, steps, step, tuple(zeros(columns) for _ in cut.makes))
        for name, acc in zip(cut.makes, accs, strict=True):
            store(name, row, part * columns, acc)

    def consume_scores(memory: Memory):
        """Compute S and P of a pair's rows; then P by d_out, or dS by the first half of block_1."""
        ring_1, ring_2, pieces = memory.ring_1, memory.ring_2, 1 + cut.halves
        (tile_1,) = fetch(memory, first_row, (0,))
        lse, ids = sums_of(0, first_row), ids_of(first_row)

        def step(j, acc):
            scores, _ = _product(tile_1, ring_1, j)
            stage_1 = ring_1.at(j * pieces)
            p = weights(visible(scores, first_row, j, stage_1, ids), lse(stage_1))
            ring_1.free(j * pieces + (pieces - 1), loaded=threads_load)
            if cut.halves:
                _give(memory, p, memory.exchange_full)
                plgpu.barrier_wait(memory.exchange_empty)  # and dS given
                acc = add(acc, lambda: _take(memory), stage_1.block)
                ring_1.free(j * pieces)
            else:
                pl.when(j > 0)(lambda: plgpu.barrier_wait(memory.exchange_empty))  # the last P
                _give(memory, p, memory.exchange_full)
                acc = add(acc, lambda: p, ring_2.wait(j).block)
                ring_2.free(j)
            return acc

        acc = lax.fori_loop(0, steps, step, zeros(WIDE))
        if not cut.halves:
            plgpu.barrier_wait(memory.exchange_empty)
        store(cut.makes[0], first_row, 0, acc)

    def consume_gradients(memory: Memory):
        """Compute dP and dS of a pair's rows; then dS by block_1, or by its second half."""
        ring_1, ring_2, pieces = memory.ring_1, memory.ring_2, 1 + cut.halves
        (tile_2,) = fetch(memory, first_row, (1,))
        delta = sums_of(1, first_row)

        def step(j, acc):
            dp, _ = _product(tile_2, ring_2, j, free=True)
            stage_1 = ring_1.wait(j * pieces)
            plgpu.barrier_wait(memory.exchange_full)
            ds = gradient(_take(memory), dp, delta(stage_1))
            if cut.halves:
                _give(memory, ds, memory.exchange_empty)
                ring_1.free(j * pieces, loaded=cut.by_keys)
                stage_1 = ring_1.wait(j * pieces + 1)
            else:
                plgpu.barrier_arrive(memory.exchange_empty)
            acc = add(acc, lambda: ds, stage_1.block)
            ring_1.free(j * pieces + (pieces - 1), loaded=cut.by_keys and not cut.halves)
            return acc

        acc = lax.fori_loop(0, steps, step, zeros(WIDE))
        store(cut.makes[-1], first_row, WIDE * cut.halves, acc)

    def roles(memory: Memory):
        def role(is_mine, run: Callable, registers: int, action: Any):
            @pl.when(is_mine)
            def _():
                plgpu.set_max_registers(registers, action=action)
                run(memory)

        role(warpgroup == PRODUCER, produce, hopper.LOADER_REGISTERS, "decrease")
        if cut.pair:
            role(warpgroup == 0, consume_scores, hopper.COMPUTE_REGISTERS, "increase")
            role(warpgroup == 1, consume_gradients, hopper.COMPUTE_REGISTERS, "increase")
        else:
            role(warpgroup != PRODUCER, consume, hopper.COMPUTE_REGISTERS, "increase")

    pl.run_scoped(roles, _memory(problem, cut), collective_axes="warpgroup")


def _memory(problem: Problem, cut: Pass) -> Memory:
    def swizzled(*shape: int):
        return hopper.swizzled(shape, problem.dtype)

    (pieces_1, columns_1), (_, columns_2) = pieces = cut.pieces(problem.width)
    stages_1, stages_2 = cut.stages[0] * pieces_1, cut.stages[1]
    own = 1 if cut.pair else 2  # consumers with rows of their own
    sums = (stages_1, cut.inputs, cut.block)
    stage_1 = Stage(
        swizzled(stages_1, cut.block, columns_1),
        plgpu.SMEM(sums, "float32") if cut.by_keys else None,
        plgpu.SMEM((stages_1, cut.block), "int32") if problem.has_segments else None,
    )
    copies = 1 + cut.inputs * cut.by_keys + problem.has_segments
    memory = Memory(
        [swizzled(own, n, ROWS, columns) for n, columns in pieces[: cut.inputs]],
        [plgpu.Barrier(num_arrivals=n, num_barriers=own) for n, _ in pieces[: cut.inputs]],
        hopper.ring(stage_1, stages_1, consumers=2, copies=copies, cluster=cut.cluster),
        hopper.ring(
            Stage(swizzled(stages_2, cut.block, columns_2)), stages_2,
            consumers=1 if cut.halves else 2, cluster=cut.cluster,
        ),
    )  # fmt: skip
    if not cut.pair:
        return memory
    exchange = hopper.swizzled((cut.block // CHUNK, ROWS, CHUNK), "float32")
    full, empty = plgpu.Barrier(), plgpu.Barrier()
    return memory._replace(exchange=exchange, exchange_full=full, exchange_empty=empty)


def _product(
    tile, ring: Ring, j, *, free: bool = False, meanwhile: Callable[[], Any] = lambda: ()
) -> tuple[jax.Array, Any]:
    """Return a tile by block j, [64, rows of the block] float32, and what `meanwhile` computes.

    Args:
      tile: [pieces, 64, columns] in shared memory; the block has as many pieces, one per stage.
      free: free each piece once the next one's product is under way.
    """
    pieces = tile.shape[0]
    # Waited for out here: zeros of an accumulator are written out before a branch.
    first = ring.wait(j * pieces)

    def multiply(out):
        for x in range(pieces):
            stage = ring.wait(j * pieces + x) if x else first
            hopper.wgmma(out, tile.at[x + opaque_zero(j)], stage.block.transpose((1, 0)))
            if x and free:
                plgpu.wgmma_wait(1)
                ring.free(j * pieces + (x - 1))
        beside = meanwhile()
        return out[...], beside

    out = plgpu.WGMMAAccumulatorRef((ROWS, ring.memory.block.shape[1]), jnp.float32)
    result = pl.run_scoped(multiply, out)
    if free:
        ring.free(j * pieces + (pieces - 1))
    return result


def _give(memory: Memory, scores: jax.Array, barrier) -> None:
    """Give a block of scores to the other consumer of a pair."""
    for x in range(memory.exchange.shape[0]):
        memory.exchange[x] = scores[:, x * CHUNK : (x + 1) * CHUNK]
    plgpu.barrier_arrive(barrier)


def _take(memory: Memory) -> jax.Array:
    count = memory.exchange.shape[0]
    pieces = [plgpu.load(memory.exchange.at[x], layout=SCORES) for x in range(count)]
    return jnp.concatenate(pieces, axis=1)
