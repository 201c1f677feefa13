"""How the Mosaic kernel partitions a product of few rows and a large matrix over a Hopper GPU.

Every thread block streams one weight tile, some columns by a share of the matrix's rows, through
shared memory, and multiplies each step of it by all rows of a token group before the next step.
"""

from typing import NamedTuple

from parallax.kernels.cache_tiled_mlp.limits import STEP
from parallax.kernels.chip import MULTIPROCESSORS, ROWS, SHARED_BYTES_LIMIT

COMPUTING = 2  # consumer warpgroups; each has half of a block's columns, and all tokens
# Columns of all matrices of a block: the sums of 128 tokens fill half of the registers.
COLUMNS = 256
MOST_TOKENS = 128
_MOST_SPLITS = 16
_SUM_BYTES = 4
# Shared memory for results in flight (8 KB per warpgroup) and for barriers.
_RESULT_BYTES = COMPUTING * 8192 + 1024


class Cut(NamedTuple):
    """The partition of x [tokens, inputs] by one or two matrices [inputs, outputs].

    Attributes:
      matrices: one, or two of the same shape, whose columns a block holds side by side.
      item_bytes: bytes of one stored value: 2, or 1 for integers that are unpacked on the chip.
      rows: rows of a token group, padded: 64 or 128.
      groups: token groups. Blocks of one weight tile are neighbours: the second one finds the tile
        in the L2 cache.
      tiles: column tiles.
      splits: parts of the inputs; each leaves its own partial sums.
      steps: steps over all inputs.
    """

    matrices: int
    item_bytes: int
    rows: int
    groups: int
    tiles: int
    splits: int
    steps: int

    @property
    def columns(self) -> int:
        """Columns per matrix and block."""
        return COLUMNS // self.matrices

    @property
    def share(self) -> int:
        """Columns per matrix and consumer warpgroup."""
        return self.columns // COMPUTING

    @property
    def blocks(self) -> int:
        """Number of thread blocks."""
        return self.groups * self.tiles * self.splits

    @property
    def stages(self) -> int:
        """Number of steps in shared memory at a time."""
        rest = SHARED_BYTES_LIMIT - _RESULT_BYTES - COMPUTING * self.unpacked_bytes
        # 4 bytes per column, for the scales of groups.
        scale_bytes = 4 * COLUMNS if self.item_bytes == 1 else 0
        return rest // (STEP * (2 * self.rows + COLUMNS * self.item_bytes) + scale_bytes)

    @property
    def unpacked_bytes(self) -> int:
        """Bytes per warpgroup of the two alternating buffers of integers unpacked to 16 bits."""
        return 2 * STEP * self.share * self.matrices * 2 if self.item_bytes == 1 else 0


def cut(tokens: int, inputs: int, outputs: int, *, matrices: int = 1, item_bytes: int = 2) -> Cut:
    """Return the partition with the least work for the busiest multiprocessor.

    More splits keep more multiprocessors busy, but each writes partial sums that are read again to
    be added up: both are counted as bytes through device memory.
    """
    groups = -(-tokens // MOST_TOKENS)
    rows = -(-tokens // (groups * ROWS)) * ROWS
    columns = COLUMNS // matrices
    tiles, steps = -(-outputs // columns), inputs // STEP
    step_bytes = STEP * COLUMNS * item_bytes * MULTIPROCESSORS

    def n_bytes(splits: int) -> float:
        waves = -(-groups * tiles * splits // MULTIPROCESSORS)
        sums = 2 * splits * tokens * outputs * matrices * _SUM_BYTES if splits > 1 else 0
        return waves * -(-steps // splits) * step_bytes + sums

    splits = min(range(1, min(_MOST_SPLITS, steps) + 1), key=n_bytes)
    return Cut(matrices, item_bytes, rows, groups, tiles, splits, steps)
