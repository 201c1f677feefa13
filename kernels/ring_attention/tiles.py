"""What the Mosaic kernels support and how they tile it, with some configurations per head_dim.

There is one kernel (Hopper; one producer warpgroup) with three kinds of consumers:
  rows: two warpgroups have 64 queries each and all of their output, up to 256 wide.
  64 rows: one warpgroup has 64 queries. Half as much work per thread block, for few of them.
  wide: two share 64 queries; each has half of the output's columns, since 64 x 512 float32 do not
    fit a warpgroup's registers. Each also multiplies half of head_dim, and the two add scores.

Their bounds (derived; assumed: 132 multiprocessors at 1.755 GHz, 4,096 FLOPs and 128 bytes of
shared memory per cycle each, 5.5 TB/s from L2, 4.3 TB/s from device memory):
  L2: a thread block reads all K and V for its queries, 1 byte for as many FLOPs as it has queries.
    128 (rows): 704 TFLOP/s; 64 (the others): 352; a cluster of two doubles both.
  Shared memory, wide, a block of 64 keys (8.4 MFLOPs, 2,048 cycles of the tensor cores): 128 KB
    arrive, products read 128 KB of Q and K and 64 KB of V, the exchange of scores moves 64 KB:
    3,072 cycles, 633 TFLOP/s. Rows, 256: 256 KB, the tensor cores' 2,048 cycles; 128: 224 KB.
  64 rows, head_dim 128, a block of 128 keys: 1,024 cycles of the tensor cores, which then wait some
    170 (compiled: 123 of the loop's 484 instructions; assumed: 0.75 per cycle of a lone warp); 144
    KB, 1,152 cycles of shared memory. Rows: 2,048 cycles. So it is 1.7 times as fast where each
    block has a multiprocessor of its own, 1.5 with all of them reading from L2; head_dim 64, bound
    by instructions, 1.3. That is where blocks of 128 rows leave half of the multiprocessors idle:
    625 queries of up to 13 heads, 313 (in zigzag order) of up to 22. Two blocks in turn on one
    multiprocessor gain nothing: 625 queries of 16 heads are 160. Nor would two at a time, of 64
    keys to fit: 160 KB arrive and are read per 64 keys, 1,280 cycles, where rows take 1,024.
  Persistent, of whole attention with more tiles than multiprocessors: a tile begins and ends beside
    products, the next one's loads and the last one's stores. At 4,096 tokens of 16 heads of 128
    that is some 5 of 42 us (assumed, by published times). And tiles are dealt out so that blocks
    end together: there, causal, 0.2 % after their mean, where one head after another, as the
    hardware takes them, ends 27 % after it; at 10,000 tokens 0.4 % and 8 % (derived).
  Device memory: thread blocks of one head run concurrently (79 or 157 of them for 10,000 queries),
    and the head's 20 MB of K and V (head_dim 512) stay in the 50 MB of L2: 16 heads read 0.33 GB
    once. With heads running concurrently instead, all 0.33 GB are read in each of 19 waves: 6.2 GB,
    1.4 ms of the 7.3 ms at 450 TFLOP/s.
  The carry: 4 bytes of o in and out per query and column: at 625 queries and keys (a sixteenth)
    head_dim 512 moves 2.6 MB for 0.8 GFLOPs, 0.6 us beside 1.8 us at 450 TFLOP/s, hidden by the
    last blocks if its latency is short: it is prefetched to L2.
"""

from typing import NamedTuple

from parallax.kernels import dispatch
from parallax.kernels.chip import DTYPES, MULTIPROCESSORS, ROWS
from parallax.kernels.validation import PLAIN, Kind

# Copies move whole 8-row tiles of queries, keys, values and output.
COPIED_ROWS = 8


class Tile(NamedTuple):
    """One tiling of the forward kernel.

    Attributes:
      keys: key/value rows per block, a multiple of 64.
      stages: blocks of keys and of values in shared memory at a time.
      wide: whether both consumer warpgroups share 64 queries (see above).
      cluster: neighbouring thread blocks that read each block of keys and values from L2 once, by
        multicast: 1 or 2.
      ahead: whether a block's softmax overlaps with the product of the previous block's values.
      turns: whether the two warpgroups alternate at the tensor cores. Not for the wide kernel,
        whose warpgroups work on the same scores, nor for one warpgroup.
      warpgroups: consumer warpgroups, 1 or 2.
      persistent: whether a thread block takes several tiles of queries, as many blocks as there are
        multiprocessors. For whole attention alone: a carry comes and goes in the memory of keys.
      q_stages: queries of so many tiles in shared memory at a time.
    """

    keys: int
    stages: int
    wide: bool = False
    cluster: int = 1
    ahead: bool = False
    turns: bool = False
    warpgroups: int = 2
    persistent: bool = False
    q_stages: int = 1

    @property
    def halves(self) -> int:
        """Number of parts of the columns, one per warpgroup that shares its queries."""
        return 2 if self.wide else 1

    @property
    def queries(self) -> int:
        """Number of query rows per thread block."""
        return ROWS * self.warpgroups // self.halves

    @property
    def cluster_queries(self) -> int:
        """Number of query rows that share their keys."""
        return self.queries * self.cluster


# Tilings of each head_dim that are timed side by side. All compute the same.
SMALL_BLOCKS, PERSISTENT = "64 rows", ", persistent"
# And the stages of queries that a persistent block has memory for.
_ROWS = {
    64: (Tile(keys=128, stages=2), 2),
    128: (Tile(keys=128, stages=2), 2),
    256: (Tile(keys=64, stages=2), 1),
}
CANDIDATES: dict[int, dict[str, Tile]] = {
    head_dim: {
        PLAIN: tile,
        "turns": tile._replace(turns=True),
        f"turns{PERSISTENT}": tile._replace(turns=True, persistent=True, q_stages=stages),
        "ahead": tile._replace(ahead=True),
        "ahead, turns, cluster": tile._replace(ahead=True, turns=True, cluster=2),
        SMALL_BLOCKS: tile._replace(ahead=True, cluster=2, warpgroups=1),
    }
    for head_dim, (tile, stages) in _ROWS.items()
}
_WIDE = Tile(keys=64, stages=1, wide=True)
CANDIDATES[512] = {
    PLAIN: _WIDE,
    "cluster": _WIDE._replace(cluster=2),
    "ahead": _WIDE._replace(ahead=True),
    "ahead, cluster": _WIDE._replace(ahead=True, cluster=2),
    f"ahead, cluster{PERSISTENT}": _WIDE._replace(ahead=True, cluster=2, persistent=True),
}

# The tilings that run, by instruction counts and published measurements of their like, until a GPU
# has timed them.
DEFAULTS = {64: "turns", 128: "turns", 256: "turns", 512: "ahead, cluster"}
# Filling the last cluster may add this share to the rows; a ring's short pieces go without.
_MOST_FILLING = 0.05


def shipped(shape: tuple[int, ...], *, is_whole: bool = False) -> str:
    """Return the name of the tiling that runs for queries [B, L, H, K], of `CANDIDATES`.

    Whole blocks of it have the same tiling, so that a ring may fill up its queries.

    Args:
      is_whole: whether it is whole attention, without a carry in or out, and without segments,
        whose work only the device knows. Then blocks persist, if some would take several tiles.
    """
    batch, length, heads, head_dim = shape
    name, tiles = DEFAULTS[head_dim], CANDIDATES[head_dim]
    tile = tiles[name]
    blocks, clusters = (-(-length // n) for n in (tile.queries, tile.cluster_queries))
    if SMALL_BLOCKS in tiles and 2 * batch * heads * blocks <= MULTIPROCESSORS:
        return SMALL_BLOCKS
    if clusters * tile.cluster > (1 + _MOST_FILLING) * blocks:
        return name.removesuffix(", cluster")
    persists = is_whole and batch * heads * clusters * tile.cluster > MULTIPROCESSORS
    return name + PERSISTENT if persists else name


def shipped_tile(shape: tuple[int, ...], *, is_whole: bool = False) -> Tile:
    """Return the tiling that runs for queries of this shape."""
    return CANDIDATES[shape[-1]][shipped(shape, is_whole=is_whole)]


def kind_of(q, is_causal: bool, *, is_whole: bool = False) -> Kind:
    """Return the key of the kernel's runs in the record, for the tiling that runs."""
    cut = shipped(q.shape, is_whole=is_whole) if q.shape[-1] in CANDIDATES else PLAIN
    return Kind(q.shape[-1], q.dtype.name, is_causal, cut)


def unsupported(
    q, k, v, scale: float, partial_over: str | None, d_out=None, *, cap: float | None = None
) -> str | None:
    """Return why the kernels do not support this, in a few words; None if they do.

    Args:
      q, k, v: [B, L, H, K], [B, M, G, K], [B, M, G, V]. Others as in `api.attention_step`.
      d_out: [B, L, H, V], gradient of the output in the backward step.
    """
    if d_out is not None and d_out.dtype != q.dtype:
        return f"d_out is {d_out.dtype} and q {q.dtype}, and it has one dtype for both"
    if not q.dtype == k.dtype == v.dtype or q.dtype.name not in DTYPES:
        return f"inputs are {q.dtype}, {k.dtype} and {v.dtype}, and it has {' and '.join(DTYPES)}"
    if q.shape[-1] not in CANDIDATES or v.shape[-1] != q.shape[-1]:
        dims = ", ".join(map(str, CANDIDATES))
        return f"head_dim is {q.shape[-1]} (values {v.shape[-1]}), and it has {dims} for both"
    if partial_over is not None:
        return "it cannot sum scores over a mesh axis"
    if cap is not None:
        return "it has no capped scores"
    if not scale > 0:
        return f"the scale is {scale}, and it takes a positive one"
    return dispatch.not_hopper()
