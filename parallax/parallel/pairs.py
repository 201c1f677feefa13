"""The pairs of query and key chunks that each hop of a path computes, by order of tokens.

Forward and backward share this code: a pair is `step(queries, keys, accumulator, **mask)` on one
chunk of queries and one chunk of keys, and an accumulator is whatever the step returns.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from parallax.kernels.ring_attention import block_size, score_elements
from parallax.parallel.order import chunk_lengths
from parallax.parallel.ring import OWN


class Accumulators(NamedTuple):
    """The accumulators of each query chunk and of each key chunk (None: keys have none)."""

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


class Pairs:
    """The visible pairs of one sequence split into `size` pieces.

    Args:
      size: number of pieces, static.
      me: index of this device's piece.
      length: tokens per piece.
      is_causal, order: the mask, and the order of tokens in pieces.
      may_branch: False if a step communicates: masked work is then computed and dropped, since a
        collective in a branch that only some devices take would deadlock.
    """

    def __init__(
        self, size: int, me: Any, length: int, is_causal: bool, order: str, *,
        may_branch: bool = True,
    ):  # fmt: skip
        self.me, self.is_causal, self.may_branch = me, is_causal, may_branch
        self.zigzag = is_causal and order == "zigzag" and size > 1
        self.lengths: tuple[int, ...] = chunk_lengths(length) if self.zigzag else (length,)

    def cut_all(self, *arrays_and_axes: tuple[jax.Array | None, int]) -> list[tuple]:
        """Cut arrays into this order's chunks, each along its token axis; None stays None."""
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
        self, source: Any, step: Callable, queries: Sequence, keys: Sequence, acc: Accumulators
    ) -> Accumulators:
        """Run all visible pairs with the keys of `source` (OWN, or the index of their device)."""

        def pair(acc, q, kv, causal):
            if not (self.lengths[q] and self.lengths[kv]):
                return acc
            new = step(queries[q], keys[kv], acc.take(q, kv), is_causal=causal)
            return acc.put(q, kv, new)

        if not self.zigzag:
            if source is OWN or not self.is_causal:
                return pair(acc, 0, 0, source is OWN and self.is_causal)
            if self.may_branch:
                return lax.cond(source < self.me, lambda: pair(acc, 0, 0, False), lambda: acc)
            return _where(source < self.me, pair(acc, 0, 0, False), acc)
        early, late = 0, 1
        if source is OWN:
            acc = pair(acc, early, early, True)
            acc = pair(acc, late, early, False)
            return pair(acc, late, late, True)
        # Late queries always see early keys. In addition, early queries see the early keys of
        # earlier devices, or late queries the late keys of later ones. Both pairs have one shape,
        # and data choose between them instead of a branch, so that all devices do the same work and
        # none waits for its host.
        acc = pair(acc, late, early, False)
        return self._either(source < self.me, step, queries, keys, acc)

    def _either(self, first, step, queries, keys, acc):
        """Run pair (0, 0) if `first`, else pair (1, 1), in one step of the larger pair's shape."""

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
            return _where(taken, jax.tree.map(_trim_like, new, previous), previous)

        return acc.put(0, 0, keep(first, old[0])).put(1, 1, keep(jnp.logical_not(first), old[1]))


def scores_of_pairs(size: int, length: int, is_causal: bool, order: str) -> int:
    """Return the scores per head of the busiest device over all hops, in whole blocks."""

    def area(queries: int, keys: int, causal: bool = False) -> int:
        return score_elements(queries, keys, causal) if queries and keys else 0

    if not (is_causal and order == "zigzag" and size > 1):
        return area(length, length, causal=is_causal) + (size - 1) * area(length, length)
    early, late = chunk_lengths(length)
    own = area(early, early, causal=True) + area(late, late, causal=True)
    return own + size * area(late, early) + (size - 1) * area(late, late)


def block_of_pairs(size: int, length: int, is_causal: bool, order: str) -> int:
    """Return the tokens per block in which `scores_of_pairs` are computed."""
    if is_causal and order == "zigzag" and size > 1:
        length = max(chunk_lengths(length))
    return block_size(length)


def _where(condition, new, old):
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _pad_like(x, y):
    return jnp.pad(x, [(0, b - a) for a, b in zip(x.shape, y.shape, strict=True)])


def _trim_like(x, y):
    return lax.slice(x, (0,) * x.ndim, y.shape)
