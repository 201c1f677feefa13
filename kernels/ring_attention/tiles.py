"""What the Mosaic kernels support and how they cut it: one configuration for each head_dim.

Two shapes of kernel (Hopper; one warpgroup loads, two compute):
  rows: each computing warpgroup has 64 queries and all of their output, up to 256 wide.
  wide: both share 64 queries; each has half of the output's columns, since 64 x 512 float32 do not
    fit a warpgroup's registers. Each also multiplies half of head_dim, and the two add scores.
"""

from typing import NamedTuple

from parallax.kernels import dispatch

# Queries of one warpgroup: the rows of a wgmma instruction.
ROWS = 64
# Columns of the float32 output that are folded into the carry at a time: 128 bytes, one swizzle.
CHUNK = 32

DTYPES = ("float16", "bfloat16")


class Tile(NamedTuple):
    """One configuration.

    Attributes:
      keys: key/value rows of a block, a multiple of 16.
      stages: blocks of keys and of values in shared memory at a time.
      wide: both computing warpgroups share 64 queries (see above).
    """

    keys: int
    stages: int
    wide: bool = False

    @property
    def queries(self) -> int:
        """Query rows of one block of threads."""
        return ROWS if self.wide else 2 * ROWS

    def shared_bytes(self, head_dim: int) -> int:
        """Shared memory of the arrays, barriers (some hundred bytes) not counted; 2-byte inputs."""
        loaded = (self.queries + 2 * self.stages * self.keys) * head_dim * 2
        # The wide kernel folds its output through the array in which it exchanges scores.
        return loaded + 2 * ROWS * (self.keys if self.wide else CHUNK) * 4


TILES = {
    64: Tile(keys=128, stages=2),
    128: Tile(keys=128, stages=2),
    256: Tile(keys=64, stages=2),
    512: Tile(keys=64, stages=1, wide=True),
}


def unsupported(
    q, k, v, scale: float, segments: bool, partial_over: str | None, d_out=None
) -> str | None:
    """Why the kernels cannot do this, in a few words; None if they can.

    Args:
      q, k, v: [B, L, H, K], [B, M, G, K], [B, M, G, V]. Others as in `api.attention_step`.
      d_out: [B, L, H, V], of the backward step.
    """
    if d_out is not None and d_out.dtype != q.dtype:
        return f"d_out is {d_out.dtype} and q {q.dtype}, and it has one dtype for both"
    if not q.dtype == k.dtype == v.dtype or q.dtype.name not in DTYPES:
        return f"inputs are {q.dtype}, {k.dtype} and {v.dtype}, and it has {' and '.join(DTYPES)}"
    if q.shape[-1] not in TILES or v.shape[-1] != q.shape[-1]:
        dims = ", ".join(map(str, TILES))
        return f"head_dim is {q.shape[-1]} (values {v.shape[-1]}), and it has {dims} for both"
    if segments:
        return "it has no segment ids"
    if partial_over is not None:
        return "it cannot sum scores over a mesh axis"
    if not scale > 0:
        return f"the scale is {scale}, and it takes a positive one"
    return dispatch.not_hopper()


def score_elements(q_length: int, kv_length: int, is_causal: bool, tile: Tile) -> int:
    """Scores of one head that a step computes: its visible blocks, whole and padded."""
    rows, total = tile.queries, 0
    for first in range(0, q_length, rows):
        keys = min(kv_length, first + rows) if is_causal else kv_length
        total += rows * -(-keys // tile.keys) * tile.keys
    return total
