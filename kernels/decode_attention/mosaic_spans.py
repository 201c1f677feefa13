"""Inside the kernel: the slots that count of a sequence, as tiles of keys, numbered in a row."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from parallax.kernels.hopper import i32


class Span(NamedTuple):
    """Slots of a sequence that count, in tiles.

    Tiles start at multiples of 8 slots, as copies must: a span may begin inside its first.

    Attributes:
      start, end: first slot, and the one after the last.
      row: first one of the first tile.
      before: tiles of the spans before.
    """

    start: jax.Array
    end: jax.Array
    row: jax.Array
    before: jax.Array


def spans_of(numbers, sequence, keys: int) -> tuple[list[Span], jax.Array]:
    """Of a sequence, and how many tiles they have together.

    Args:
      numbers: [B, 1 + 2 S], of each sequence its row of the cache, and its spans.
    """
    found, tiles = [], i32(0)
    for s in range(1, numbers.shape[1], 2):
        start, end = numbers[sequence, s], numbers[sequence, s + 1]
        row = lax.div(start, i32(8)) * 8
        found.append(Span(start, end, row, tiles))
        own = lax.div(end - row + (keys - 1), i32(keys))
        tiles = tiles + jnp.where(start < end, own, 0)
    return found, tiles


def place(spans: list[Span], tile, keys: int) -> tuple[jax.Array, ...]:
    """Of one tile, by its number: first slot of it, first that counts, end of those that do."""
    here = None
    for span in spans:
        # An empty span has the same tiles before it as the next, which takes its place.
        its = span.row + (tile - span.before) * keys, span.start, span.end
        if here is not None:
            its = tuple(jnp.where(tile >= span.before, *x) for x in zip(its, here, strict=True))
        here = its
    assert here is not None
    return here
