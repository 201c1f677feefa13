"""The time of fused attention: tiles of queries over the SMs, beside the bytes of keys and values.

A kernel holds a tile of queries and passes over the keys that they see, so few sequences and heads
leave SMs idle. With one query per sequence (decode) it splits the keys over idle SMs instead, and
takes as long as they take to read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from parallax.cost.gemm import beside

_ITEM = 2  # bytes per element
_LEAST_ROWS = 64  # of queries that one step of the tensor cores multiplies, however few there are
_LEAST_KEYS = 128  # that a part of split keys holds, before a query sees them
_SPLIT_KEYS = 256  # that a part of split keys holds in decode


@dataclass(frozen=True)
class TileRates:
    """The rates of one pass (forward or backward) of kernels of one head width.

    Attributes:
      flops_per_s: FLOP/s of all SMs in the main loop.
      tile_s: seconds per tile of queries besides its products: pipeline fill and epilogue.
    """

    flops_per_s: float
    tile_s: float


@dataclass(frozen=True)
class DecodeRates:
    """The rates of attention with one query per sequence, of kernels of one head width.

    Attributes:
      start_s: seconds from the launch to the first byte, and after the last.
      memory_share: bytes per second of keys and values over those of a copy.
      query_share: likewise of queries and results.
      cached_bytes_per_s: bytes per second of what is in the L2 cache.
      cached_bytes: bytes of which about half are in the L2 cache from the call before.
      sm_bytes_per_s: bytes per second that one SM can read.
      tile_s: seconds per head of keys and sequence besides its bytes.
      width_s: more of them, per 128 of the head width.
      split_s: seconds that splitting the keys adds.
      splits: largest number of parts into which keys are split.
      overlap: as in `GemmRates`, of tiles and bytes.
    """

    start_s: float
    memory_share: float
    query_share: float
    cached_bytes_per_s: float
    cached_bytes: float
    sm_bytes_per_s: float
    tile_s: float
    width_s: float
    split_s: float
    splits: float
    overlap: float


@dataclass(frozen=True)
class AttentionRates:
    """The fitted rates of one GPU's fused attention in 16 bits.

    Attributes:
      kernel: the implementation that was measured.
      tile_queries: rows of queries per tile.
      packs: whether the heads of queries that share a head of keys fill a tile together.
      start_s: seconds from the launch to the first product, and after the last.
      query_share: bytes per second of queries and results over those of a copy.
      key_share: likewise of keys and values.
      cached_bytes_per_s, cached_bytes: as in `DecodeRates`.
      tail: share of the longest tile for which SMs wait at the end.
      spread: exponent: n SMs for one tile make it n**spread times as fast, its keys split.
      overlap: as in `GemmRates`, of tiles and bytes.
      forward, backward: largest head width of a kernel -> its rates.
      decode: likewise, with one query per sequence.
    """

    kernel: str
    tile_queries: float
    packs: bool
    start_s: float
    query_share: float
    key_share: float
    cached_bytes_per_s: float
    cached_bytes: float
    tail: float
    spread: float
    overlap: float
    forward: Mapping[str, TileRates]
    backward: Mapping[str, TileRates]
    decode: Mapping[str, DecodeRates]

    def of_width(self, head_dim: int) -> TileRates:
        """Return the rates of the forward pass's kernel for a head width."""
        return _of_width(self.forward, head_dim)[1]

    def flops_per_s(self, head_dim: int) -> float:
        """Return the FLOP/s of a long forward pass, without those of a head's padding."""
        width, own = _of_width(self.forward, head_dim)
        return own.flops_per_s * head_dim / width


class Calls(NamedTuple):
    """Calls of attention of one head width and pass: sizes as arrays [r], see `attention_seconds`.

    `keys` is the keys that the last query of a sequence sees, fewer than `kv_len` in a window.
    """

    batch: np.ndarray
    heads: np.ndarray
    kv_heads: np.ndarray
    q_len: np.ndarray
    kv_len: np.ndarray
    keys: np.ndarray


def attention_seconds(
    rates: AttentionRates, sm_count: int, memory_bytes_per_s: float, *, batch: int, heads: int,
    kv_heads: int, q_len: int, kv_len: int, head_dim: int, causal: bool, backward: bool = False,
    value_dim: int | None = None, window: int | None = None,
) -> float:  # fmt: skip
    """Estimate the seconds of softmax(Q K^T) V, or of its gradients alone, in 16 bits.

    Args:
      rates: rates of the GPU.
      sm_count: streaming multiprocessors of the GPU.
      memory_bytes_per_s: bytes of a copy per second.
      batch: sequences.
      heads, kv_heads: heads of queries, and of keys and values.
      q_len, kv_len: queries and keys per sequence; one query is a decoding step.
      head_dim: width of a head of queries and keys; 64 to 256 measured, wider ones extrapolated
        where the GPU's rates have no kernel for them.
      causal: whether the last q_len positions are the queries and see no later key.
      backward: the gradients of Q, K and V, without the forward pass.
      value_dim: width of a head of values; None is head_dim.
      window: keys that a query sees at most.
    """
    keys = kv_len if window is None else min(window, kv_len)
    calls = Calls(*(np.array([float(x)]) for x in (batch, heads, kv_heads, q_len, kv_len, keys)))
    gpu = sm_count, memory_bytes_per_s
    # No prompt is faster than one query of it.
    least = 0.0 if backward else float(decode_times(rates, *gpu, calls, head_dim)[0])
    if q_len == 1 and not backward:
        return least
    values = head_dim if value_dim is None else value_dim
    found = pass_times(rates, *gpu, calls, head_dim, causal, backward, values)
    return max(least, float(found[0]))


def pass_times(
    rates: AttentionRates, sm_count: int, memory_bytes_per_s: float, calls: Calls, head_dim: int,
    causal: bool, backward: bool, value_dim: int,
) -> np.ndarray:  # fmt: skip
    """Estimate the seconds [r] of many forward or backward passes, as `attention_seconds` does."""
    width, own = _of_width(rates.backward if backward else rates.forward, head_dim)
    group = calls.heads / calls.kv_heads if rates.packs else np.ones_like(calls.heads)
    rows = rates.tile_queries
    tiles = calls.batch * calls.heads / group * np.ceil(calls.q_len * group / rows)
    queries = np.minimum(rows / group, calls.q_len)
    # A tile passes over all keys that one of its queries sees; `mean` is over the tiles.
    longest = np.minimum(calls.keys + (queries if causal else 0.0), calls.kv_len)
    mean = longest
    if causal:
        mean = np.minimum(longest, np.maximum(calls.kv_len / 2, calls.kv_len -
                                              (calls.q_len - queries) / 2))  # fmt: skip
    products = (6 * width + 4 * width * value_dim / head_dim) if backward else (
        2 * width + 2 * width * value_dim / head_dim)  # fmt: skip
    per_key = products * rows * sm_count / own.flops_per_s
    waves = tiles / sm_count
    alone = per_key * longest + own.tile_s
    helpers = np.maximum(1.0, np.minimum(1 / waves, calls.kv_len / _LEAST_KEYS))
    together = waves * (per_key * mean + own.tile_s) + rates.tail * alone * np.minimum(1.0, waves)
    computing = np.maximum(alone / helpers**rates.spread, together)

    per_row = _ITEM * calls.batch * (head_dim + value_dim) * (2 if backward else 1)
    queried, keyed = per_row * calls.q_len * calls.heads, per_row * calls.kv_len * calls.kv_heads
    cached = _cached(queried + keyed, rates.cached_bytes)
    moving = queried * _per_byte(rates, rates.query_share * memory_bytes_per_s, cached)
    moving += keyed * _per_byte(rates, rates.key_share * memory_bytes_per_s, cached)
    return rates.start_s + beside(computing, moving, rates.overlap)


def decode_times(
    rates: AttentionRates, sm_count: int, memory_bytes_per_s: float, calls: Calls, head_dim: int
) -> np.ndarray:
    """Estimate the seconds [r] of many calls with one query, as `attention_seconds` does."""
    _, own = _of_width(rates.decode, head_dim)
    tiles = calls.batch * calls.kv_heads * np.ceil(calls.heads / calls.kv_heads / _LEAST_ROWS)
    computing = np.ceil(tiles / sm_count) * (own.tile_s + own.width_s * head_dim / 128)
    keyed = 2.0 * _ITEM * calls.batch * calls.kv_heads * calls.keys * head_dim
    queried = 2.0 * _ITEM * calls.batch * calls.heads * head_dim
    memory = own.memory_share * memory_bytes_per_s
    share = _per_byte(own, memory, _cached(queried + keyed, own.cached_bytes))

    def seconds(parts: np.ndarray) -> np.ndarray:
        # Few SMs at work do not draw all that memory gives.
        reading = beside(keyed * share, keyed / np.minimum(sm_count, tiles * parts) /
                         own.sm_bytes_per_s, 4.0)  # fmt: skip
        moving = reading + queried / (own.query_share * memory_bytes_per_s)
        return beside(computing, moving, own.overlap)

    parts = np.minimum(np.floor(sm_count / tiles), own.splits)
    parts = np.maximum(1.0, np.minimum(parts, calls.keys / _SPLIT_KEYS))
    split = np.where(parts > 1, own.split_s + seconds(parts), np.inf)
    return own.start_s + np.minimum(seconds(np.ones_like(parts)), split)


def _cached(n_bytes: np.ndarray, half: float) -> np.ndarray:
    """Return the share of a call's bytes that the L2 cache still holds from the call before."""
    return 1 / (1 + (n_bytes / half) ** 4)


def _per_byte(
    rates: AttentionRates | DecodeRates, memory_bytes_per_s: float, cached: np.ndarray
) -> np.ndarray:
    return (1 - cached) / memory_bytes_per_s + cached / rates.cached_bytes_per_s


def _of_width[R](widths: Mapping[str, R], head_dim: int) -> tuple[int, R]:
    """Return the width to which a kernel pads heads, and its rates."""
    known = sorted((int(width), rates) for width, rates in widths.items())
    for width, rates in known:
        if head_dim <= width:
            return width, rates
    return head_dim, known[-1][1]
