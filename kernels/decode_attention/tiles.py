"""What the Mosaic kernel supports, and how it tiles a head_dim and a group of queries.

Products are transposed, scores^T = K q^T and o^T = V^T p^T: keys and columns of the values fill the
64 rows of a wgmma instruction, and the queries of a key head are its columns, in eights. With
queries as rows, one query would cost as much as 64, in products, exponentials and registers.

It is bound by memory: 4.3 TB/s x about 1 us of latency requires 33 KB in flight to each of 132
multiprocessors. Keys and values come in chunks of 16 KB; most of shared memory holds such chunks.
Where registers allow, two thread blocks share a multiprocessor: one streams while the other starts
or ends.
"""

from typing import NamedTuple

from parallax.kernels import dispatch
from parallax.kernels.chip import DTYPES, MULTIPROCESSORS, RESERVED_BYTES, SHARED_BYTES
from parallax.kernels.validation import Kind

# Shared memory for barriers, scratch of reductions, and alignment.
_BESIDE_BYTES = 4096
# Query heads that share one read of the keys; with more, sums of the output spill.
_MOST_QUERIES = {64: 64, 128: 64, 256: 32, 512: 16}
HEAD_DIMS = tuple(_MOST_QUERIES)
# Bytes that a thread block could have streamed while it starts and ends, about 3 us.
_START_BYTES = 48 * 1024
# Registers per thread where two thread blocks share a multiprocessor.
REGISTERS_OF_TWO = 128


class Tile(NamedTuple):
    """The tiling of one problem.

    Attributes:
      head_dim: head dimension of queries, keys and values.
      queries: columns of the products, a multiple of 8.
      groups: groups of that many queries per key head; each reads the keys again.
      keys: keys per tile. columns: columns of head_dim per chunk: `keys` x `columns` are 16 KB.
      blocks: thread blocks per multiprocessor.
    """

    head_dim: int
    queries: int
    groups: int
    keys: int
    columns: int
    blocks: int

    @property
    def chunks(self) -> int:
        """Chunks per tile of keys; as many per tile of values."""
        return self.head_dim // self.columns

    @property
    def chunk_bytes(self) -> int:
        return 2 * self.keys * self.columns

    @property
    def stages(self) -> int:
        """Number of chunks in shared memory at a time."""
        fixed = 2 * self.queries * (self.head_dim + self.keys) + _BESIDE_BYTES
        return (SHARED_BYTES // self.blocks - RESERVED_BYTES - fixed) // self.chunk_bytes


def tile_of(head_dim: int, heads_per_kv: int) -> Tile:
    """Return the tiling that ships for a head_dim and a number of query heads per key head."""
    groups = -(-heads_per_kv // _MOST_QUERIES[head_dim])
    queries = 8 * -(-heads_per_kv // (8 * groups))
    keys, columns = (128, 64) if head_dim == 64 else (64, 128)
    # The registers of two blocks hold this many sums.
    blocks = 2 if queries * head_dim <= 4096 and queries <= 32 else 1
    return Tile(head_dim, queries, groups, keys, columns, blocks)


def splits(problems: int, slots: int, tile: Tile) -> int:
    """Return into how many parts the slots of one (sequence, key head) are divided.

    It is the least number within 2 % of the best time, where thread blocks run in waves of as many
    as fit at once, each as long as its tiles and its start.

    Args:
      problems: number of (sequence, key head, group of queries) triples.
      slots: slots per sequence.
    """
    tiles, room = -(-slots // tile.keys), tile.blocks * MULTIPROCESSORS
    tile_bytes = 2 * tile.chunks * tile.chunk_bytes

    def time(parts: int) -> int:
        return -(-problems * parts // room) * (-(-tiles // parts) * tile_bytes + _START_BYTES)

    times = {parts: time(parts) for parts in range(1, min(tiles, room) + 1)}
    return next(parts for parts, t in times.items() if t <= 1.02 * min(times.values()))


def kind_of(q) -> Kind:
    """Return the key of the kernel's runs in the record; q's (or k's) last dim is head_dim."""
    return Kind(q.shape[-1], q.dtype.name)


def unsupported(
    q, k, v, scale: float, cap: float | None, masked: bool, partial_over: tuple[str, ...]
) -> str | None:
    """Return why the kernel does not support this, in a few words; None if it does.

    Shapes are those of the operation.
    """
    if v is None:
        return "values are elements of the keys, and it reads values of their own"
    if cap is not None:
        return "it has no capped scores"
    if not q.dtype == k.dtype == v.dtype or q.dtype.name not in DTYPES:
        return f"inputs are {q.dtype}, {k.dtype} and {v.dtype}, and it has {' and '.join(DTYPES)}"
    if q.shape[-1] not in HEAD_DIMS or v.shape[-1] != q.shape[-1]:
        dims = ", ".join(map(str, HEAD_DIMS))
        return f"head_dim is {q.shape[-1]} (values {v.shape[-1]}), and it has {dims} for both"
    if k.shape[2] % 8:
        return f"the cache has {k.shape[2]} slots, and it takes a multiple of 8"
    if masked:
        return "it takes spans of slots, not a mask"
    if partial_over:
        return "it cannot sum scores over a mesh axis"
    if not scale > 0:
        return f"the scale is {scale}, and it takes a positive one"
    return dispatch.not_hopper()
