"""The forward kernel: the attention of one thread block, from its queries to what it writes.

One producer warpgroup copies blocks of keys and values into rings of shared memory, and one or two
consumer warpgroups multiply with wgmma, 64 rows each. In the tilings called wide (`tiles`) they
share the rows: each multiplies its half of head_dim, adds the other's partial scores, and from
there on both have the same scores, maxima and weights, each for its own half of the values.

The consumers' loop is in sequence or overlapped. In sequence: scores of block j, softmax of j,
values of j. The tensor cores idle during a warpgroup's softmax, unless the other's products run
then: `turns` ensures that, by a pair of barriers with which the two alternate (FlashAttention-3's
ping-pong). Overlapped (`ahead`): scores of block j are issued before the values of j - 1, and the
softmax of j runs while those multiply (FlashAttention-3's pipeline within a warpgroup).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels import hopper
from parallax.kernels.chip import ROWS
from parallax.kernels.hopper import Ring, i32, opaque_zero
from parallax.kernels.ring_attention import mosaic_carry as carry
from parallax.kernels.ring_attention import mosaic_parts as parts
from parallax.kernels.ring_attention.mosaic_carry import (
    Carries,
    Finished,
    Own,
    State,
)
from parallax.kernels.ring_attention.mosaic_parts import MaskArrays, Problem, per_row
from parallax.kernels.ring_attention.tiles import Tile

# The old output is prefetched to L2 this many blocks before the end.
NEAR = 4
# Columns of partial scores in registers at a time.
CHUNK = 32


class Arrays(NamedTuple):
    """The operands in device memory; what a call does not have is None.

    Attributes:
      q, k, v: [B, L, H, K], [B, M, G, K] and [B, M, G, V].
      sinks: [H] float32, scores of a key without a value, where no carry has them.
      old: the carry.
    """

    q: Any
    k: Any
    v: Any
    mask: MaskArrays
    sinks: Any
    old: Any


class Scratch(NamedTuple):
    """The shared memory of a thread block; what a tiling does not use is None.

    Attributes:
      q, q_full: queries of each warpgroup, and the barriers of their copies.
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


def kernel(arrays: Arrays, new: Carries | Finished, *, problem: Problem, tile: Tile) -> None:
    """The body of one thread block."""
    warpgroup, columns = lax.axis_index("warpgroup"), problem.width // tile.halves
    has_carry = arrays.old is not None or isinstance(new, Carries)
    batch, head, block = (lax.axis_index(x) for x in ("batch", "heads", "rows"))
    kv_head = lax.div(head, i32(problem.heads_per_kv))
    if problem.is_causal:  # the rows with the most work first
        block = lax.axis_size("rows") - 1 - block
    sight, first_row = arrays.mask.sight(problem), block * tile.cluster_queries
    shared, kv_length = arrays.mask.shared_of(batch, block), arrays.k.shape[1]
    first, visited = sight.visits(first_row, tile.cluster_queries, tile.keys, kv_length, shared)
    # One at least, so that every barrier has a copy to wait for.
    first_key, steps = first * tile.keys, jnp.maximum(visited, 1)
    if tile.cluster > 1:
        first_row += lax.axis_index(hopper.CLUSTER) * tile.queries

    def own_of(warpgroup) -> Own:
        row, column = (0, warpgroup * columns) if tile.wide else (warpgroup * ROWS, 0)
        return Own(batch, head, first_row + row, column, columns)

    def roles(scratch: Scratch):
        (keys, old_keys), (values, old_values) = _apart(scratch.keys), _apart(scratch.values)
        scratch, old_memories = scratch._replace(keys=keys, values=values), (old_keys, old_values)
        producer = tile.warpgroups
        pl.when(warpgroup == producer)(lambda: produce(scratch, old_memories))
        pl.when(warpgroup != producer)(lambda: consume(scratch, old_memories))

    def produce(scratch: Scratch, old_memories):
        plgpu.set_max_registers(hopper.LOADER_REGISTERS, action="decrease")
        together: dict[str, Any] = {} if tile.cluster == 1 else {"collective_axes": hopper.CLUSTER}

        def fill(ring: Ring, source, j):
            rows = pl.ds(first_key + j * tile.keys, tile.keys)
            for half in range(tile.halves):

                def copy(memory, full, half=half):
                    at = batch, rows, kv_head, pl.ds(half * columns, columns)
                    memory, *ids = memory
                    plgpu.copy_gmem_to_smem(source.at[at], memory, full, **together)
                    for x in ids:
                        ids_at = arrays.mask.kv_ids.at[batch, rows]
                        plgpu.copy_gmem_to_smem(ids_at, x, full, **together)

                ring.fill(j * tile.halves + half, copy)

        def prefetch():
            for own in map(own_of, range(tile.warpgroups)):
                columns = pl.ds(own.column, own.columns)
                plgpu.async_prefetch(arrays.old.o.at[(*own.rows, columns)])

        # In the order of use: with `ahead`, keys come one block before values.
        lag = int(tile.ahead)

        @pl.loop(0, steps + lag)
        def _(j):
            if arrays.old is not None:
                pl.when(j == jnp.maximum(steps - NEAR, 0))(prefetch)
            pl.when(j < steps)(lambda: fill(scratch.keys, arrays.k, j))
            pl.when(j >= lag)(lambda: fill(scratch.values, arrays.v, j - lag))

        for half, ring in enumerate((scratch.keys, scratch.values)):
            ring.drain(steps * tile.halves)
            for w in range(tile.warpgroups if has_carry else 0):
                full = scratch.old_full.at[half * tile.warpgroups + w]
                if arrays.old is None:  # the memory is free
                    plgpu.barrier_arrive(full)
                else:
                    old = arrays.old.o.at[own_of(w).half(half)]
                    plgpu.copy_gmem_to_smem(old, old_memories[half].at[w], full)

    def consume(scratch: Scratch, old_memories):
        plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
        own, keys, values = own_of(warpgroup), scratch.keys, scratch.values
        q_mem = scratch.q.at[warpgroup]
        plgpu.copy_gmem_to_smem(arrays.q.at[own.queries], q_mem, scratch.q_full.at[warpgroup])
        state = carry.start(arrays.old, arrays.sinks, own)
        q_ids: Any = None
        if problem.has_segments:
            q_ids = parts.load(arrays.mask.q_ids.at[batch, pl.ds(own.row, ROWS)], parts.ROW)
        plgpu.barrier_wait(scratch.q_full.at[warpgroup])

        def number(j):
            return j * tile.halves + (warpgroup if tile.wide else 0)

        def take_turn():
            if tile.turns:
                plgpu.barrier_wait(scratch.turn.at[warpgroup])

        def pass_turn():
            if tile.turns:
                plgpu.barrier_arrive(scratch.turn.at[1 - warpgroup])

        def expect(j):
            """Wait for what the scores of block j need; called while products are under way."""
            if tile.wide:  # the other warpgroup has read the last ones
                plgpu.barrier_wait(scratch.exchange_empty)
            else:
                pl.when(j < steps)(lambda: keys.wait(number(j)) and None)

        def multiply_keys(j, product):
            memory, *_ = keys.wait(number(j)) if tile.wide else keys.at(number(j))
            # Otherwise the compiler would keep descriptors of both warpgroups' queries.
            q = scratch.q.at[warpgroup + opaque_zero(j)] if tile.wide else q_mem
            hopper.wgmma(product, q, memory.transpose((1, 0)))

        def masked(j, product):
            """Return the masked scores of block j, and free its keys."""
            key, ids = first_key + j * tile.keys, None
            _, *in_ring = keys.at(number(j))
            if not in_ring:
                keys.free(number(j))
            if tile.wide:
                product = _add_partial(product, scratch, warpgroup)
            if problem.has_segments:
                in_memory = arrays.mask.kv_ids.at[batch, pl.ds(key, tile.keys)]
                ids = in_ring[0] if in_ring else in_memory
            scores = parts.hide(product, sight, own.row, key, q_ids, ids)
            if in_ring:
                keys.free(number(j), loaded=True)
            return scores

        def softmax(j, state: State) -> tuple:
            """Return maxima and sums with block j, its weights, and the factor of older sums."""

            def multiply(product):
                multiply_keys(j, product)
                pass_turn()

            scores = masked(j, hopper.product((ROWS, tile.keys), multiply))
            return parts.online_softmax(state.m, state.l, scores, problem)

        def in_sequence(j, state: State) -> State:
            m, l, p, shrink = softmax(j, state)
            acc = state.acc * per_row(shrink, state.acc.shape)
            # None of this may move past take_turn: the other warpgroup would wait for it.
            acc, m, l, p = lax.optimization_barrier((acc, m, l, p.astype(problem.dtype)))
            (block,) = values.wait(number(j))
            take_turn()

            def multiply_values(acc):
                hopper.wgmma(acc, p, block)
                expect(j + 1)

            (acc,) = hopper.accumulate(multiply_values, (acc,))
            values.free(number(j))
            return State(acc, m, l)

        def overlapped(j, carried):
            """Add the values of block j - 1 with its weights p; return the weights of block j."""
            state, p = carried

            def multiply(product):
                take_turn()
                multiply_keys(j, product)
                (block,) = values.wait(number(j - 1))

                def multiply_values(acc):
                    hopper.wgmma(acc, p, block)
                    pass_turn()
                    # At most the second product is still under way. The barriers keep the code
                    # between them in place: arithmetic on registers moves freely otherwise.
                    scores = lax.optimization_barrier(
                        plgpu.wgmma_accumulator_load(product, wait_n=1)
                    )
                    new = parts.online_softmax(state.m, state.l, masked(j, scores), problem)
                    new = lax.optimization_barrier(new)
                    # This waits, hence branches, and the assembler does not move the wait for the
                    # second product over a branch. Without it, it came before the exponentials.
                    expect(j + 1)
                    return new

                like = (state.m, state.l, parts.zeros(tile.keys), state.l)
                return hopper.accumulate(multiply_values, (state.acc,), like)

            product = plgpu.WGMMAAccumulatorRef((ROWS, tile.keys), jnp.float32)
            acc, m, l, p, shrink = pl.run_scoped(multiply, product)
            # The product read the old weights until now, but the compiler believes that it was done
            # when it was issued: if rounded earlier, the new ones would overwrite them.
            p = lax.optimization_barrier(p).astype(problem.dtype)
            values.free(number(j - 1))
            return State(acc * per_row(shrink, acc.shape), m, l), p

        def first_weights(state: State):
            """Return the state with the maxima and sums of block 0, and its weights."""
            m, l, p, _ = softmax(i32(0), state)
            expect(i32(1))
            return State(state.acc, m, l), p.astype(problem.dtype)  # nothing to rescale yet

        def last_values(state: State, p) -> State:
            (block,) = values.wait(number(steps - 1))
            take_turn()
            (acc,) = hopper.accumulate(lambda acc: hopper.wgmma(acc, p, block), (state.acc,))
            values.free(number(steps - 1))
            return state._replace(acc=acc)

        # Warpgroup 0 has the first turn, and also ends the last one of 1.
        pl.when(warpgroup == 1)(take_turn)
        if tile.wide:
            plgpu.barrier_arrive(scratch.exchange_empty)
        expect(i32(0))
        if tile.ahead:
            added = last_values(*lax.fori_loop(1, steps, overlapped, first_weights(state)))
        else:
            added = lax.fori_loop(0, steps, in_sequence, state)
        pl.when(warpgroup == 0)(pass_turn)

        full = [scratch.old_full.at[x * tile.warpgroups + warpgroup] for x in range(2)]
        memories = [x.at[warpgroup] for x in old_memories]
        if arrays.old is not None:
            added = carry.add(added, state.m, memories, full)
        elif has_carry:
            for x in full:
                plgpu.barrier_wait(x)
        if isinstance(new, Finished):
            memories = [q_mem]
        carry.write(new, own, added, memories, writes_rows=warpgroup == 0 if tile.wide else True)

    pl.run_scoped(roles, scratch_of(problem, tile, columns), collective_axes="warpgroup")


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
        q=hopper.swizzled((tile.warpgroups, ROWS, columns), problem.dtype),
        q_full=plgpu.Barrier(num_barriers=tile.warpgroups),
        values=ring(),
        exchange=exchange if tile.wide else None,
        keys=ring(ids),
        exchange_full=both if tile.wide else None,
        exchange_empty=both if tile.wide else None,
        turn=plgpu.Barrier(num_barriers=tile.warpgroups),
        old_full=plgpu.Barrier(num_barriers=2 * tile.warpgroups),
    )


def _apart(ring: Ring) -> tuple[Ring, Any]:
    """Return a ring without the union of its memory, and the other memory of the union."""
    (blocks, old), *ids = ring.memory
    return ring._replace(memory=(blocks, *ids)), old


def _add_partial(product: jax.Array, scratch: Scratch, warpgroup) -> jax.Array:
    """Return the scores of which both warpgroups have a part, the product of half of head_dim."""
    scratch.exchange[warpgroup] = product
    plgpu.barrier_arrive(scratch.exchange_full)
    plgpu.barrier_wait(scratch.exchange_full)
    pieces = [product[:, x : x + CHUNK] for x in range(0, product.shape[1], CHUNK)]
    # Piece by piece: loading all at once would take more registers than there are.
    for x in range(len(pieces)):
        theirs = scratch.exchange.at[1 - warpgroup, :, pl.ds(x * CHUNK, CHUNK)]
        pieces[x] += plgpu.load(theirs, layout=parts.SCORES)
        pieces = list(lax.optimization_barrier(tuple(pieces)))
    plgpu.barrier_arrive(scratch.exchange_empty)
    return jnp.concatenate(pieces, axis=1)
