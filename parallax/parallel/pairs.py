"""The pairs of query and key chunks that each hop of a path computes, by order of tokens.

Forward and backward share this code: a pair is `step(queries, keys, accumulator, **mask)` on one
chunk of queries and one chunk of keys, and an accumulator is whatever the step returns.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from parallax.kernels.ring_attention import block_size
from parallax.parallel.order import chunk_lengths
from parallax.parallel.ring import OWN, Behind
from parallax.parallel.score_blocks import scores_of_blocks
from parallax.parallel.scoring import Scoring


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
      scoring, order: the mask, and the order of tokens in pieces.
      may_branch: False if a step communicates: masked work is then computed and dropped, since a
        collective in a branch that only some devices take would deadlock.
    """

    def __init__(
        self, size: int, me: Any, length: int, scoring: Scoring, order: str, *,
        may_branch: bool = True,
    ):  # fmt: skip
        self.size, self.me, self.may_branch = size, me, may_branch
        self.is_causal, self.window = scoring.is_causal, scoring.window
        self.length, self.zigzag = length, is_zigzag(size, scoring, order)
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
        self, source: Any, step: Callable, queries: Sequence, keys: Sequence, acc: Accumulators,
        *, finish: Callable | None = None,
    ) -> Accumulators:  # fmt: skip
        """Run all visible pairs with the keys of `source` (OWN, Behind or their device's index).

        `finish`, at the last hop, makes of a query chunk's accumulator what it ends as, where no
        step does: the last one of a chunk is told so, by `last=True`. A chunk without tokens is
        left as it is.
        """
        if self.window is not None:
            return self._in_window(source, step, queries, keys, acc, finish)
        ends: dict[str, Any] = {} if finish is None else {"last": True}

        def pair(acc, q, kv, causal, **ends):
            if not (self.lengths[q] and self.lengths[kv]):
                return acc
            new = step(queries[q], keys[kv], acc.take(q, kv), is_causal=causal, **ends)
            return acc.put(q, kv, new)

        if not self.zigzag:
            new = partial(pair, acc, 0, 0, source is OWN and self.is_causal, **ends)
            if source is OWN or not self.is_causal:
                return new()
            old = partial(_finished, acc, 0, finish)
            if self.may_branch:
                return lax.cond(source < self.me, new, old)
            return _where(source < self.me, new(), old())
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
        return self._either(source < self.me, step, queries, keys, acc, finish)

    def _in_window(self, source, step, queries, keys, acc, finish):
        """Run the pairs of chunks in which a query may see a key of its window."""
        order = "zigzag" if self.zigzag else "natural"
        starts = chunk_starts(self.me, self.length, self.size, order)
        if isinstance(source, Behind):
            offsets: dict[tuple[int, int], Any] = {(0, 0): source.places * self.length}
        elif source is OWN:
            offsets = {(i, i): 0 for i in range(len(starts))}
            offsets |= {(1, 0): starts[1] - starts[0]} if self.zigzag else {}
        else:
            theirs = chunk_starts(source, self.length, self.size, order)
            pairs = ((0, 0), (1, 0), (1, 1)) if self.zigzag else ((0, 0),)
            offsets = {(q, kv): starts[q] - theirs[kv] for q, kv in pairs}
        offsets = {
            (q, kv): x for (q, kv), x in offsets.items() if self.lengths[q] and self.lengths[kv]
        }
        last_of = dict(offsets.keys())  # by chunk of queries, its last chunk of keys
        for (q, kv), offset in offsets.items():
            end = finish if last_of[q] == kv else None

            def run(acc, q=q, kv=kv, offset=offset, end=end):
                new = step(
                    queries[q], keys[kv], acc.take(q, kv), is_causal=True, window=self.window,
                    offset=offset, **({} if end is None else {"last": True}),
                )  # fmt: skip
                return acc.put(q, kv, new)

            def leave(acc, q=q, end=end):
                return _finished(acc, q, end)

            seen: Any = True
            if isinstance(source, Behind):
                seen = self.me >= source.places  # otherwise the keys are of later tokens
            elif not isinstance(offset, int):
                reached = offset - (self.lengths[kv] - 1) < self.window
                seen = reached & (offset + self.lengths[q] > 0)
            if seen is True:
                acc = run(acc)
            elif self.may_branch:
                acc = lax.cond(seen, run, leave, acc)
            else:
                acc = _where(seen, run(acc), leave(acc))
        return acc

    def _either(self, first, step, queries, keys, acc, finish):
        """Run pair (0, 0) if `first`, else pair (1, 1), in one step of the larger pair's shape."""
        ends: dict[str, Any] = {} if finish is None else {"last": True}

        def choose(a, b):
            return jax.tree.map(lambda x, y: jnp.where(first, _pad_like(x, y), y), a, b)

        limit = None
        if self.lengths[0] != self.lengths[1]:
            limit = jnp.where(first, self.lengths[0], self.lengths[1])
        old = acc.take(0, 0), acc.take(1, 1)
        new = step(
            choose(queries[0], queries[1]), choose(keys[0], keys[1]), choose(*old),
            is_causal=False, kv_length=limit, **ends,
        )  # fmt: skip
        if finish is not None:
            acc = _finished(_finished(acc, 0, finish), 1, finish)
            old = acc.take(0, 0), acc.take(1, 1)

        def keep(taken, previous):
            return _where(taken, jax.tree.map(_trim_like, new, previous), previous)

        return acc.put(0, 0, keep(first, old[0])).put(1, 1, keep(jnp.logical_not(first), old[1]))


def is_zigzag(size: int, scoring: Scoring, order: str) -> bool:
    """Return whether pieces consist of an early and a late chunk."""
    return scoring.is_causal and order == "zigzag" and size > 1


def chunk_starts(index: Any, length: int, size: int, order: str) -> list[Any]:
    """Return the first position of each chunk of a piece (an empty one has the next's)."""
    if order == "natural":
        return [index * length]
    early, late = chunk_lengths(length)
    return [index * early, size * early + (size - 1 - index) * late]


def scores_of_pairs(
    size: int, length: int, scoring: Scoring, order: str, *, in_lockstep: bool = False
) -> int:
    """Return the scores per head of the busiest device over all hops, in whole blocks.

    With `in_lockstep` it computes what any device does: see `AttentionShape`.
    """
    if scoring.window is not None:
        return max(
            _window_scores(me, size, length, scoring, order, in_lockstep) for me in range(size)
        )

    def area(queries: int, keys: int, causal: bool = False) -> int:
        return scores_of_blocks(queries, keys, causal) if queries and keys else 0

    if not is_zigzag(size, scoring, order):
        own = area(length, length, causal=scoring.is_causal)
        return own + (size - 1) * area(length, length)
    early, late = chunk_lengths(length)
    own = area(early, early, causal=True) + area(late, late, causal=True)
    return own + size * area(late, early) + (size - 1) * area(late, late)


def _window_scores(
    me: int, size: int, length: int, scoring: Scoring, order: str, in_lockstep: bool
) -> int:
    """Return one device's scores per head under a window, as `Pairs` computes them."""
    window = scoring.window
    assert window is not None
    if not is_zigzag(size, scoring, order):
        hops = min(me, scoring.reached(length, size))
        return sum(scores_of_blocks(length, length, True, window, n * length)
                   for n in range(hops + 1))  # fmt: skip
    lengths, total = chunk_lengths(length), 0
    starts = [chunk_starts(i, length, size, "zigzag") for i in range(size)]
    for source in range(size):
        for q, kv in ((0, 0), (1, 0), (1, 1)):
            queries, keys = lengths[q], lengths[kv]
            offset = starts[me][q] - starts[source][kv]
            is_seen = offset + queries > 0 and offset - keys + 1 < window
            if not (queries and keys and (is_seen or in_lockstep)):
                continue
            # The offset of another device's keys is not known at trace time: no block is skipped.
            known = source == me and q == kv
            total += scores_of_blocks(queries, keys, known, window if known else None)
    return total


def block_of_pairs(size: int, length: int, scoring: Scoring, order: str) -> int:
    """Return the tokens per block in which `scores_of_pairs` are computed."""
    if is_zigzag(size, scoring, order):
        length = max(chunk_lengths(length))
    return block_size(length)


def _finished(acc: Accumulators, q: int, finish: Callable | None) -> Accumulators:
    """Return accumulators with that of query chunk `q` finished; None leaves it."""
    if finish is None:
        return acc
    queries = list(acc.of_queries)
    queries[q] = finish(queries[q])
    return Accumulators(queries, acc.of_keys)


def _where(condition, new, old):
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _pad_like(x, y):
    return jnp.pad(x, [(0, b - a) for a, b in zip(x.shape, y.shape, strict=True)])


def _trim_like(x, y):
    return lax.slice(x, (0,) * x.ndim, y.shape)
