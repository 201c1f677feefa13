"""The time of fused attention: tiles of queries over the SMs, or the bytes of keys and values.

A kernel holds a tile of queries and passes over the keys that they see. Short queries (decode) are
one tile per head of keys; the kernel then splits the keys over the SMs that are free.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

# Rows of queries that one step of the tensor cores multiplies, however few there are.
_LEAST_ROWS = 64


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
    """The rates of attention with one query per sequence.

    Attributes:
      start_s: seconds from the launch to the first byte, and after the last.
      memory_share: bytes per second over those of a copy.
      cached_bytes_per_s: bytes per second where keys and values are in the L2 cache.
      cached_bytes: bytes of keys and values of which half are found there.
      tile_s: seconds per head of keys and sequence besides its bytes.
    """

    start_s: float
    memory_share: float
    cached_bytes_per_s: float
    cached_bytes: float
    tile_s: float


@dataclass(frozen=True)
class AttentionRates:
    """The fitted rates of one GPU's fused attention in 16 bits.

    Attributes:
      kernel: the implementation that was measured.
      tile_queries: rows of queries per tile.
      packs: whether the heads of queries that share a head of keys fill a tile together.
      start_s: seconds from the launch to the first product, and after the last.
      memory_share: bytes per second of queries, keys and results over those of a copy.
      tail: share of the longest tile for which SMs wait at the end.
      forward, backward: largest head width of a kernel -> its rates.
      decode: the rates with one query per sequence.
    """

    kernel: str
    tile_queries: int
    packs: bool
    start_s: float
    memory_share: float
    tail: float
    forward: Mapping[str, TileRates]
    backward: Mapping[str, TileRates]
    decode: DecodeRates

    def flops_per_s(self, head_dim: int) -> float:
        """Return the FLOP/s of a long forward pass, without those of a head's padding."""
        width, own = _of_width(self.forward, head_dim)
        return own.flops_per_s * head_dim / width


def attention_seconds(
    rates: AttentionRates, sm_count: int, memory_bytes_per_s: float, *, batch: int, heads: int,
    kv_heads: int, q_len: int, kv_len: int, head_dim: int, causal: bool, backward: bool = False,
) -> float:  # fmt: skip
    """Estimate the seconds of softmax(Q K^T) V, or of its gradients alone, in 16 bits.

    Args:
      rates: rates of the GPU.
      sm_count: streaming multiprocessors of the GPU.
      memory_bytes_per_s: bytes of a copy per second.
      batch: sequences.
      heads, kv_heads: heads of queries, and of keys and values.
      q_len, kv_len: queries and keys per sequence; one query is a decoding step.
      head_dim: width of a head; up to 256 measured, 512 extrapolated on most GPUs.
      causal: whether the last q_len positions are the queries and see no later key.
      backward: the gradients of Q, K and V, without the forward pass.
    """
    pairs = batch * kv_heads
    n_bytes = 4.0 * head_dim * batch * (heads * q_len + kv_heads * kv_len) * (1 + backward)
    if q_len == 1 and not backward:
        moving = _read_seconds(rates.decode, memory_bytes_per_s, n_bytes)
        # Few heads and sequences do not fill the GPU, even with the keys split.
        used = min(1.0, pairs * math.ceil(kv_len / 128) / sm_count) ** 0.5
        tiles = math.ceil(pairs * math.ceil(heads / kv_heads / _LEAST_ROWS) / sm_count)
        return rates.decode.start_s + moving / used + tiles * rates.decode.tile_s
    computing = _tiles_seconds(
        rates, sm_count, batch, heads, kv_heads, q_len, kv_len, head_dim, causal, backward
    )
    moving = n_bytes / (rates.memory_share * memory_bytes_per_s)
    return rates.start_s + (computing**3 + moving**3) ** (1 / 3)


def _read_seconds(rates: DecodeRates, memory_bytes_per_s: float, n_bytes: float) -> float:
    cached = 1 / (1 + (n_bytes / rates.cached_bytes) ** 4)
    from_memory = (1 - cached) / (rates.memory_share * memory_bytes_per_s)
    return n_bytes * (cached / rates.cached_bytes_per_s + from_memory)


def _tiles_seconds(
    rates: AttentionRates, sm_count: int, batch: int, heads: int, kv_heads: int, q_len: int,
    kv_len: int, head_dim: int, causal: bool, backward: bool,
) -> float:  # fmt: skip
    group = heads / kv_heads if rates.packs else 1
    tiles = batch * heads / group * math.ceil(q_len * group / rates.tile_queries)
    queries = min(rates.tile_queries / group, q_len)
    # The mean over tiles of the keys that a tile's last query sees.
    keys = kv_len - (q_len - queries) / 2 if causal else kv_len
    width, own = _of_width(rates.backward if backward else rates.forward, head_dim)
    per_key = (10.0 if backward else 4.0) * rates.tile_queries * width
    per_key *= sm_count / own.flops_per_s
    longest = per_key * kv_len + own.tile_s
    mean = per_key * keys + own.tile_s
    waves = tiles / sm_count
    return max(longest, waves * mean + rates.tail * longest * min(1.0, waves))


def _of_width(widths: Mapping[str, TileRates], head_dim: int) -> tuple[int, TileRates]:
    """Return the width to which a kernel pads heads, and its rates."""
    known = sorted((int(width), rates) for width, rates in widths.items())
    for width, rates in known:
        if head_dim <= width:
            return width, rates
    return head_dim, known[-1][1]
