"""The mask of a step, and the blocks of tokens that a tile of tokens visits under it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Mask(NamedTuple):
    """The mask that says which keys a query sees; see `api.attention_step`."""

    is_causal: bool
    q_segment_ids: jax.Array | None = None
    kv_segment_ids: jax.Array | None = None
    kv_length: jax.Array | None = None
    window: int | None = None
    offset: int | jax.Array = 0

    @property
    def has_segments(self) -> bool:
        return self.q_segment_ids is not None

    def check_lengths(self, q_length: int, kv_length: int) -> None:
        """Raise ValueError if the mask is causal, without a window, and the lengths differ."""
        if self.is_causal and self.window is None and q_length != kv_length:
            raise ValueError(
                f"attention_step: is_causal pairs query i with key i, but there are {q_length} "
                f"queries and {kv_length} keys. Pass blocks of equal length."
            )

    def limit(self, kv_length: int) -> Any:
        """Return the number of keys that count, of `kv_length`."""
        return kv_length if self.kv_length is None else jnp.minimum(self.kv_length, kv_length)

    def known(self, kv_length: int, *, by_keys: bool = False) -> "Sight":
        """Return what the host knows of it: no limit or segments, and no window it cannot place."""
        window = self.window if isinstance(self.offset, int) else None
        is_causal = self.is_causal and window == self.window
        return Sight(is_causal, window, kv_length, self.offset, by_keys)


class Sight(NamedTuple):
    """The tokens that a token sees, but for segments. Of static or traced integers, or NumPy's.

    Attributes:
      is_causal: query i sees keys up to i, or with a window, the last ones up to offset + i.
      window: keys that a query sees, its own and those before it; None is all.
      limit: keys from this index on do not count.
      offset: the position of query 0 minus that of key 0, with a window.
      by_keys: whether a row is a key and meets queries; otherwise it is a query and meets keys.
    """

    is_causal: bool
    window: int | None
    limit: Any
    offset: Any
    by_keys: bool = False

    def met(self, row) -> tuple[Any, Any]:
        """Return the first token of the other side that a row meets, and the end.

        None: the mask has no such bound. Keys that do not count are not hidden from by_keys.
        """
        window, hides_later = self.window, self.is_causal or self.window is not None
        offset = 0 if window is None else self.offset  # a known 0 takes no register
        if self.by_keys:
            first = row - offset
            return first if hides_later else None, None if window is None else first + window
        end = row + (offset + 1)
        high = _numpy(row).minimum(self.limit, end) if hides_later else self.limit
        return None if window is None else end - window, high

    def visits(self, first, rows: int, block: int, others: int, shared: Any = None) -> tuple:
        """Return the first block, and the number of blocks, that some row of a tile may see.

        It may see none: the first block is one that exists all the same.

        Args:
          first: the tile's first row; an array, of several tiles. rows: rows per tile.
          block: tokens per block. others: number of tokens of the other side.
          shared: with segments, the tile's bounds of `shared_blocks`.
        """
        xp, count = _numpy(first), -(-others // block)
        (low, _), (_, high) = self.met(first), self.met(first + (rows - 1))
        start, end = 0 * first, 0 * first + count
        if low is not None:
            start = _over(xp.maximum(low, 0), block)
        if high is not None:
            end = xp.minimum(_over(xp.maximum(high, 0) + (block - 1), block), count)
        if shared is not None:
            start, end = xp.maximum(start, shared[0]), xp.minimum(end, shared[1])
        number = xp.maximum(end - start, 0)
        if self.by_keys:
            number = xp.where(first < self.limit, number, 0)
        return xp.minimum(start, count - 1), number


def _numpy(x) -> Any:
    return np if isinstance(x, np.ndarray) else jnp


def _over(x, divisor: int) -> Any:
    """Return x // divisor of what is not negative, in a kernel without JAX's code for signs."""
    return lax.div(x, jnp.int32(divisor)) if isinstance(x, jax.Array) else x // divisor


def shared_blocks(ids, others, rows: int, block: int) -> jax.Array:
    """Compute the range of blocks that may share a segment with each tile, [B, tiles, 2] int32.

    Ids may be any integers in any order: a tile and a block may share a segment where the ranges of
    their ids overlap. Of documents that lie one after another, those blocks are the ones with a
    token of the tile's documents.

    Args:
      ids, others: [B, tokens] int32, segment ids of the tiles' and of the blocks' tokens.
      rows: tokens per tile. block: tokens per block.

    Returns:
      The first such block and the one after the last; the latter is 0 where there is none.
    """
    (low, high), (lows, highs) = _extremes(ids, rows), _extremes(others, block)
    shares = (low[:, :, None] <= highs[:, None]) & (lows[:, None] <= high[:, :, None])
    blocks = lax.broadcasted_iota(jnp.int32, shares.shape, 2)
    first = jnp.where(shares, blocks, shares.shape[2]).min(-1)
    return jnp.stack([first, jnp.where(shares, blocks + 1, 0).max(-1)], axis=-1)


def _extremes(ids, size: int) -> tuple[jax.Array, jax.Array]:
    """Return the least and the largest of every `size` ids."""
    missing = -ids.shape[1] % size
    filled = jnp.pad(ids, ((0, 0), (0, missing)), mode="edge")
    cut = filled.reshape(ids.shape[0], -1, size)
    return cut.min(-1), cut.max(-1)


def score_elements(
    mask: Mask, lengths: tuple[int, int], rows: int, block: int, *, by_keys: bool = False
) -> int:
    """Count the scores of one head that a kernel computes: its visited blocks, whole and padded.

    Of what only the device knows, segments and a number of keys hide nothing here, and a window
    leaves as many blocks as any offset does.

    Args:
      lengths: numbers of queries and of keys.
      rows: rows per tile: queries, or keys if `by_keys`. block: tokens per block of the others.
    """
    own, others = lengths[::-1] if by_keys else lengths
    sight = mask.known(lengths[1], by_keys=by_keys)
    _, count = sight.visits(np.arange(0, own, rows), rows, block, others)
    if mask.window is not None:  # as many blocks as a range of this many tokens touches
        count = np.minimum(count, -(-(rows + mask.window + block - 2) // block))
    return int(np.maximum(count, 1).sum()) * rows * block
