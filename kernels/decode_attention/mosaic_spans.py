"""The slots of a sequence that count, as consecutively numbered tiles of keys, in the kernel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from parallax.kernels.hopper import i32


class Span(NamedTuple):
    """One span of a sequence's slots that count, in tiles.

    Tiles start at multiples of 8 slots, as copies must: a span may begin inside its first tile.

    Attributes:
      start, end: first slot, and the one after the last.
      row: first slot of the first tile.
      before: number of tiles in earlier spans.
    """

    start: jax.Array
    end: jax.Array
    row: jax.Array
    before: jax.Array


def spans_of(numbers, sequence, keys: int) -> tuple[list[Span], jax.Array]:
    """Return the spans of a sequence, and the number of their tiles.

    Args:
      numbers: [B, 1 + 2 S], per sequence its row of the cache, and its spans.
    """
    spans, tiles = [], i32(0)
    for s in range(1, numbers.shape[1], 2):
        start, end = numbers[sequence, s], numbers[sequence, s + 1]
        row = lax.div(start, i32(8)) * 8
        spans.append(Span(start, end, row, tiles))
        own = lax.div(end - row + (keys - 1), i32(keys))
        tiles = tiles + jnp.where(start < end, own, 0)
    return spans, tiles


def place(spans: list[Span], tile, keys: int) -> tuple[jax.Array, ...]:
    """Return a tile's first slot, and the first and the end of its span's slots that count."""
    current = None
    for span in spans:
        # An empty span has the same number of tiles before it as the next, which replaces it.
        own = span.row + (tile - span.before) * keys, span.start, span.end
        if current is not None:
            own = tuple(jnp.where(tile >= span.before, *x) for x in zip(own, current, strict=True))
        current = own
    assert current is not None
    return current
