"""The ring itself: who sends what when, and which chunks meet which at each hop.

Written once for forward and backward: a "pair" is `step(queries, keys, accumulator, **mask)` on one
chunk of queries and one chunk of keys, and an accumulator is whatever the step returns.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from parallax.parallel.order import chunk_lengths

OWN: Final = None  # the hop at which a device meets its own keys


class Accumulators(NamedTuple):
    """What the pairs build up, by chunk of queries and by chunk of keys (None: nothing there)."""

    of_queries: list[Any]
    of_keys: list[Any] | None

    def take(self, i: int, j: int) -> Any:
        return self.of_queries[i] if self.of_keys is None else (self.of_queries[i], self.of_keys[j])

    def put(self, i: int, j: int, value: Any) -> "Accumulators":
        queries, keys = list(self.of_queries), self.of_keys
        if keys is None:
            queries[i] = value
        else:
            keys = list(keys)
            queries[i], keys[j] = value
        return Accumulators(queries, keys)


class Ring:
    """A mesh axis as a ring; `axis_name=None` is a ring of one."""

    def __init__(self, axis_name: str | None, is_causal: bool, order: str, local_length: int):
        self.axis_name, self.is_causal = axis_name, is_causal
        self.size = 1 if axis_name is None else lax.axis_size(axis_name)
        self.zigzag = is_causal and order == "zigzag" and self.size > 1
        self.lengths: tuple[int, ...] = (local_length,)
        if self.zigzag:
            self.lengths = chunk_lengths(local_length)

    def send(self, tree: Any) -> Any:
        """`tree` as the previous device of the ring had it."""
        pairs = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axis_name, pairs), tree)

    def travel(self, kv: Any, hop: Callable[[Any, Any, Any], Any], state: Any) -> Any:
        """Folds `hop(state, kv, i)` over the ring's keys; each send starts before the hop's work.

        P - 1 sends of every array in `kv`: the last hop sends nothing.
        """
        received = self.send(kv) if self.size > 1 else None
        state = hop(state, kv, OWN)
        if self.size == 1:
            return state

        def body(carry, i):
            state, kv = carry
            following = self.send(kv)
            return (hop(state, kv, i), following), None

        if self.size > 2:
            (state, received), _ = lax.scan(
                body, (state, received), jnp.arange(1, self.size - 1, dtype=jnp.int32)
            )
        return hop(state, received, self.size - 1)

    def cut_all(self, *arrays_and_axes: tuple[jax.Array | None, int]) -> list[tuple]:
        """The arrays (None passes) cut into this order's chunks along each one's token axis."""
        chunks, start = [], 0
        for length in self.lengths:
            chunks.append(
                tuple(
                    None if x is None else lax.slice_in_dim(x, start, start + length, axis=axis)
                    for x, axis in arrays_and_axes
                )
            )
            start += length
        return chunks

    def visit(
        self, i: Any, step: Callable, queries: Sequence, keys: Sequence, acc: Accumulators
    ) -> Accumulators:
        """All visible pairs of hop `i` (OWN, or how many places back the keys come from)."""

        def pair(acc, q, kv, causal):
            if not (self.lengths[q] and self.lengths[kv]):
                return acc
            new = step(queries[q], keys[kv], acc.take(q, kv), is_causal=causal)
            return acc.put(q, kv, new)

        if not self.zigzag:
            if i is OWN or not self.is_causal:
                return pair(acc, 0, 0, i is OWN and self.is_causal)
            from_earlier = i <= lax.axis_index(self.axis_name)
            return lax.cond(from_earlier, lambda: pair(acc, 0, 0, False), lambda: acc)
        early, late = 0, 1
        if i is OWN:
            acc = pair(acc, early, early, True)
            acc = pair(acc, late, early, False)
            return pair(acc, late, late, True)
        # Late queries always see early keys. Besides, early queries see early keys of earlier
        # devices, or late queries the late keys of later ones: pairs of one shape, chosen by data
        # rather than by a branch, so that all devices do the same work and none waits for its host.
        acc = pair(acc, late, early, False)
        return self._either(i <= lax.axis_index(self.axis_name), step, queries, keys, acc)

    def _either(self, first, step, queries, keys, acc):
        """Pair (0, 0) where `first`, else pair (1, 1), in one computation of the larger's shape."""

        def choose(a, b):
            return jax.tree.map(lambda x, y: jnp.where(first, _pad_like(x, y), y), a, b)

        limit = None
        if self.lengths[0] != self.lengths[1]:
            limit = jnp.where(first, self.lengths[0], self.lengths[1])
        old = acc.take(0, 0), acc.take(1, 1)
        new = step(
            choose(queries[0], queries[1]), choose(keys[0], keys[1]), choose(*old),
            is_causal=False, kv_length=limit,
        )  # fmt: skip

        def keep(taken, previous):
            return jax.tree.map(lambda n, o: jnp.where(taken, _trim_like(n, o), o), new, previous)

        return acc.put(0, 0, keep(first, old[0])).put(1, 1, keep(jnp.logical_not(first), old[1]))


def _pad_like(x, y):
    return jnp.pad(x, [(0, b - a) for a, b in zip(x.shape, y.shape, strict=True)])


def _trim_like(x, y):
    return lax.slice(x, (0,) * x.ndim, y.shape)
