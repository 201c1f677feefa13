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

A persistent block takes several tiles of queries: the producer loads keys and values of the next
while consumers end one, whose output is written as they begin the next.
"""

from collections.abc import Callable
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
    State,
)
from parallax.kernels.ring_attention.mosaic_memory import Scratch, apart, scratch_of
from parallax.kernels.ring_attention.mosaic_parts import MaskArrays, Problem, per_row
from parallax.kernels.ring_attention.mosaic_tasks import Own, Task, Tasks
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
      schedule: tiles of persistent blocks, see `mosaic_tasks.schedule`.
    """

    q: Any
    k: Any
    v: Any
    mask: MaskArrays
    sinks: Any
    old: Any
    schedule: Any


def kernel(arrays: Arrays, new: Carries | Finished, *, problem: Problem, tile: Tile) -> None:
    """The body of one thread block."""
    warpgroup, columns = lax.axis_index("warpgroup"), problem.width // tile.halves
    has_carry = arrays.old is not None or isinstance(new, Carries)
    sight, kv_length = arrays.mask.sight(problem), arrays.k.shape[1]
    rows = (new.lse if isinstance(new, Finished) else new.m).shape[2]
    tasks = Tasks(
        None if arrays.schedule is None else arrays.schedule.at[lax.axis_index("blocks")],
        arrays.q.shape[2], rows // tile.cluster_queries, is_reversed=problem.is_causal,
    )  # fmt: skip

    def task_of(n, start) -> Task:
        batch, head, number = tasks.place(n)
        kv_head = lax.div(head, i32(problem.heads_per_kv))
        first_row = number * tile.cluster_queries
        shared = arrays.mask.shared_of(batch, number)
        first, visited = sight.visits(first_row, tile.cluster_queries, tile.keys, kv_length, shared)
        if tile.cluster > 1:
            first_row += lax.axis_index(hopper.CLUSTER) * tile.queries
        # One block at least, so that every barrier has a copy to wait for.
        end = start + jnp.maximum(visited, 1)
        return Task(batch, head, kv_head, first_row, start, end, (first - start) * tile.keys)

    # Made here: within the roles it would take more registers.
    only = None if tasks.is_persistent else task_of(0, i32(0))

    def each_task(run: Callable[[Any, Task], None]) -> Any:
        """Call run(n, task) for the block's tasks, in order; return where the last one ends."""
        if only is not None:
            run(0, only)
            return only.end

        def one(n, start):
            task = task_of(n, start)
            run(n, task)
            return task.end

        return lax.fori_loop(0, tasks.number, one, i32(0))

    def own_of(task: Task, warpgroup) -> Own:
        row, column = (0, warpgroup * columns) if tile.wide else (warpgroup * ROWS, 0)
        return Own(task.batch, task.head, task.first_row + row, column, columns)

    def roles(scratch: Scratch):
        (keys, old_keys), (values, old_values) = apart(scratch.keys), apart(scratch.values)
        scratch, old_memories = scratch._replace(keys=keys, values=values), (old_keys, old_values)
        producer = tile.warpgroups
        pl.when(warpgroup == producer)(lambda: produce(scratch, old_memories))
        pl.when(warpgroup != producer)(lambda: consume(scratch, old_memories))

    def produce(scratch: Scratch, old_memories):
        plgpu.set_max_registers(hopper.LOADER_REGISTERS, action="decrease")
        blocks = each_task(lambda _, task: produce_task(scratch, task))
        with_carry = [own_of(only, w) for w in range(tile.warpgroups)] if only and has_carry else []
        for half, ring in enumerate((scratch.keys, scratch.values)):
            ring.drain(blocks * tile.halves)
            for w, own in enumerate(with_carry):
                full = scratch.old_full.at[half * tile.warpgroups + w]
                if arrays.old is None:  # the memory is free
                    plgpu.barrier_arrive(full)
                else:
                    old = arrays.old.o.at[own.half(half)]
                    plgpu.copy_gmem_to_smem(old, old_memories[half].at[w], full)

    def produce_task(scratch: Scratch, task: Task):
        together: dict[str, Any] = {} if tile.cluster == 1 else {"collective_axes": hopper.CLUSTER}
        if tasks.is_persistent and tile.q_stages == 1:  # no memory takes them yet
            for w in range(tile.warpgroups):
                plgpu.async_prefetch(arrays.q.at[own_of(task, w).queries])

        def fill(ring: Ring, source, j):
            rows = pl.ds(task.key + j * tile.keys, tile.keys)
            for half in range(tile.halves):

                def copy(memory, full, half=half):
                    at = task.batch, rows, task.kv_head, pl.ds(half * columns, columns)
                    memory, *ids = memory
                    plgpu.copy_gmem_to_smem(source.at[at], memory, full, **together)
                    for x in ids:
                        ids_at = arrays.mask.kv_ids.at[task.batch, rows]
                        plgpu.copy_gmem_to_smem(ids_at, x, full, **together)

                ring.fill(j * tile.halves + half, copy)

        def prefetch_old():
            for own in (own_of(task, w) for w in range(tile.warpgroups)):
                columns = pl.ds(own.column, own.columns)
                plgpu.async_prefetch(arrays.old.o.at[(*own.rows, columns)])

        # In the order of use: with `ahead`, keys come one block before values.
        lag = int(tile.ahead)

        @pl.loop(task.start, task.end + lag)
        def _(j):
            if arrays.old is not None:
                pl.when(j == jnp.maximum(task.end - NEAR, 0))(prefetch_old)
            pl.when(j < task.end)(lambda: fill(scratch.keys, arrays.k, j))
            pl.when(j >= task.start + lag)(lambda: fill(scratch.values, arrays.v, j - lag))

    def consume(scratch: Scratch, old_memories):
        plgpu.set_max_registers(hopper.COMPUTE_REGISTERS, action="increase")
        early = tile.q_stages - 1  # the number of tasks by which queries are loaded before

        def load_queries(n, task: Task):
            queries = arrays.q.at[own_of(task, warpgroup).queries]
            plgpu.copy_gmem_to_smem(queries, *queries_of(scratch, n))

        def load_next(n):
            load_queries(n, task_of(n, i32(0)))

        def run(n, task: Task):
            if tasks.is_persistent:  # these take the memory of what the last task wrote
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            if early:
                pl.when(n + early < tasks.number)(lambda: load_next(n + early))
            else:
                load_queries(n, task)
            consume_task(scratch, old_memories, n, task)

        # Warpgroup 0 has the first turn, and waits for the end of the last one of 1.
        pl.when(warpgroup == 1)(lambda: pass_turn(scratch))
        for n in range(early):
            load_next(i32(n))
        each_task(run)
        plgpu.wait_smem_to_gmem(0)
        pl.when(warpgroup == 0)(lambda: take_turn(scratch))

    def take_turn(scratch: Scratch):
        if tile.turns:
            plgpu.barrier_wait(scratch.turn.at[warpgroup])

    def pass_turn(scratch: Scratch):
        if tile.turns:
            plgpu.barrier_arrive(scratch.turn.at[1 - warpgroup])

    def queries_of(scratch: Scratch, n) -> tuple[Any, Any]:
        """Return the memory and the barrier of this warpgroup's queries of task n."""
        at = warpgroup
        if tile.q_stages > 1:
            at += lax.rem(n, i32(tile.q_stages)) * tile.warpgroups
        return scratch.q.at[at], scratch.q_full.at[at]

    def consume_task(scratch: Scratch, old_memories, n, task: Task):
        keys, values = scratch.keys, scratch.values
        own, (q_mem, q_full) = own_of(task, warpgroup), queries_of(scratch, n)
        state = carry.start(arrays.old, arrays.sinks, own)
        q_ids: Any = None
        if problem.has_segments:
            q_ids = parts.load(arrays.mask.q_ids.at[own.batch, pl.ds(own.row, ROWS)], parts.ROW)
        plgpu.barrier_wait(q_full)

        def number(j):
            return j * tile.halves + (warpgroup if tile.wide else 0)

        def expect(j):
            """Wait for what the scores of block j need; called while products are under way."""
            if tile.wide:  # the other warpgroup has read the last ones
                plgpu.barrier_wait(scratch.exchange_empty)
            else:
                pl.when(j < task.end)(lambda: keys.wait(number(j)) and None)

        def multiply_keys(j, product):
            memory, *_ = keys.wait(number(j)) if tile.wide else keys.at(number(j))
            # Otherwise the compiler would keep descriptors of both warpgroups' queries.
            q = scratch.q.at[warpgroup + opaque_zero(j)] if tile.wide else q_mem
            hopper.wgmma(product, q, memory.transpose((1, 0)))

        def masked(j, product):
            """Return the masked scores of block j, and free its keys."""
            key, ids = task.key + j * tile.keys, None
            _, *in_ring = keys.at(number(j))
            if not in_ring:
                keys.free(number(j))
            if tile.wide:
                product = _add_partial(product, scratch, warpgroup)
            if problem.has_segments:
                in_memory = arrays.mask.kv_ids.at[own.batch, pl.ds(key, tile.keys)]
                ids = in_ring[0] if in_ring else in_memory
            scores = parts.hide(product, sight, own.row, key, q_ids, ids)
            if in_ring:
                keys.free(number(j), loaded=True)
            return scores

        def softmax(j, state: State) -> tuple:
            """Return maxima and sums with block j, its weights, and the factor of older sums."""

            def multiply(product):
                multiply_keys(j, product)
                pass_turn(scratch)

            scores = masked(j, hopper.product((ROWS, tile.keys), multiply))
            return parts.online_softmax(state.m, state.l, scores, problem)

        def in_sequence(j, state: State) -> State:
            m, l, p, shrink = softmax(j, state)
            acc = state.acc * per_row(shrink, state.acc.shape)
            # None of this may move past take_turn: the other warpgroup would wait for it.
            acc, m, l, p = lax.optimization_barrier((acc, m, l, p.astype(problem.dtype)))
            (block,) = values.wait(number(j))
            take_turn(scratch)

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
                take_turn(scratch)
                multiply_keys(j, product)
                (block,) = values.wait(number(j - 1))

                def multiply_values(acc):
                    hopper.wgmma(acc, p, block)
                    pass_turn(scratch)
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
            """Return the state with the maxima and sums of the first block, and its weights."""
            m, l, p, _ = softmax(task.start, state)
            expect(task.start + 1)
            return State(state.acc, m, l), p.astype(problem.dtype)  # nothing to rescale yet

        def last_values(state: State, p) -> State:
            (block,) = values.wait(number(task.end - 1))
            take_turn(scratch)
            (acc,) = hopper.accumulate(lambda acc: hopper.wgmma(acc, p, block), (state.acc,))
            values.free(number(task.end - 1))
            return state._replace(acc=acc)

        if tile.wide:
            plgpu.barrier_arrive(scratch.exchange_empty)
        expect(task.start)
        take_turn(scratch)
        if tile.ahead:
            weights = first_weights(state)
            added = last_values(*lax.fori_loop(task.start + 1, task.end, overlapped, weights))
        else:
            added = lax.fori_loop(task.start, task.end, in_sequence, state)
        pass_turn(scratch)

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
