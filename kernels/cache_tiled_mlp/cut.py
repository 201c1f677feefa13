"""How the Mosaic kernel cuts a product of few rows and a large matrix over a Hopper GPU.

Every block of threads streams one slab of the matrix, some columns by a share of its rows, through
shared memory, and multiplies each step of it with all rows of a group of tokens before the next.
"""

from typing import NamedTuple

from parallax.kernels.cache_tiled_mlp.limits import STEP
from parallax.kernels.chip import MULTIPROCESSORS, ROWS, SHARED_BYTES_LIMIT

COMPUTING = 2  # warpgroups; each has half of a block's columns, and all tokens
# Columns of all of a block's matrices: the sums of 128 tokens fill half of the registers.
COLUMNS = 256
MOST_TOKENS = 128
_MOST_SPLITS = 16
_SUM_BYTES = 4
# Shared memory of results on their way (8 KB a warpgroup), and of barriers.
_RESULT_BYTES = COMPUTING * 8192 + 1024


class Cut(NamedTuple):
    """Of x [tokens, inputs] by one or two matrices [inputs, outputs].

    Attributes:
      matrices: one, or two of the same shape whose columns a block has side by side.
      item_bytes: of one stored value: 2, or 1 for integers that are unpacked on the chip.
      rows: of a group of tokens, padded: 64 or 128.
      groups: of tokens. Blocks of one slab are neighbours: the second finds it in the L2 cache.
      tiles: of columns.
      splits: of the inputs; each leaves sums of its own.
      steps: of the inputs, in all.
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
        """Of one matrix and block."""
        return COLUMNS // self.matrices

    @property
    def share(self) -> int:
        """Columns of one matrix and computing warpgroup."""
        return self.columns // COMPUTING

    @property
    def blocks(self) -> int:
        """Blocks of threads."""
        return self.groups * self.tiles * self.splits

    @property
    def stages(self) -> int:
        """Steps in shared memory at a time."""
        rest = SHARED_BYTES_LIMIT - _RESULT_BYTES - COMPUTING * self.unpacked_bytes
        # 4 bytes a column: of the scales that groups have.
        of_scales = 4 * COLUMNS if self.item_bytes == 1 else 0
        return rest // (STEP * (2 * self.rows + COLUMNS * self.item_bytes) + of_scales)

    @property
    def unpacked_bytes(self) -> int:
        """Of one warpgroup: two steps of integers as 16 bits, which take turns."""
        return 2 * STEP * self.share * self.matrices * 2 if self.item_bytes == 1 else 0


def cut(tokens: int, inputs: int, outputs: int, *, matrices: int = 1, item_bytes: int = 2) -> Cut:
    """The cut with the least to do for the busiest multiprocessor.

    More splits keep more multiprocessors busy, and each writes its sums, read again by whoever adds
    them up: both are counted as bytes through the device's memory.
    """
    groups = -(-tokens // MOST_TOKENS)
    rows = -(-tokens // (groups * ROWS)) * ROWS
    columns = COLUMNS // matrices
    tiles, steps = -(-outputs // columns), inputs // STEP
    of_step = STEP * COLUMNS * item_bytes * MULTIPROCESSORS

    def n_bytes(splits: int) -> float:
        waves = -(-groups * tiles * splits // MULTIPROCESSORS)
        sums = 2 * splits * tokens * outputs * matrices * _SUM_BYTES if splits > 1 else 0
        return waves * -(-steps // splits) * of_step + sums

    splits = min(range(1, min(_MOST_SPLITS, steps) + 1), key=n_bytes)
    return Cut(matrices, item_bytes, rows, groups, tiles, splits, steps)
