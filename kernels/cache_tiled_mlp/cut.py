"""What the Mosaic kernel supports, and how it partitions a product over a Hopper GPU.

Every thread block streams one weight tile, some columns by a share of the matrix's rows, through
shared memory, and multiplies each step of it by all rows of a token group before the next step.
"""

from collections.abc import Sequence
from typing import NamedTuple

from parallax.kernels import dispatch
from parallax.kernels.cache_tiled_mlp.reference import Matrix, group_of
from parallax.kernels.chip import DTYPES, ROWS, SHARED_BYTES_LIMIT, splits_of
from parallax.kernels.validation import Kind

# Rows of a matrix per step: 128 bytes of 16-bit activations, one swizzle.
STEP = 64
COMPUTING = 2  # consumer warpgroups; each has half of a block's columns, and all tokens
# Columns of all matrices of a block: the sums of 128 tokens fill half of the registers.
COLUMNS = 256
_GROUP_TOKENS = 128
# With more tokens, products are bound by the tensor cores, where XLA's library is better.
_MOST_TOKENS = 512
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
    """Return the partition with the least work for the busiest multiprocessor."""
    groups = -(-tokens // _GROUP_TOKENS)
    rows = -(-tokens // (groups * ROWS)) * ROWS
    tiles, steps = -(-outputs * matrices // COLUMNS), inputs // STEP
    sums_bytes = tokens * outputs * matrices * _SUM_BYTES
    splits = splits_of(
        steps, groups * tiles, STEP * COLUMNS * item_bytes, sums_bytes, is_direct=True
    )
    return Cut(matrices, item_bytes, rows, groups, tiles, splits, steps)


def cut_of(tokens: int, matrices: Sequence[Matrix]) -> Cut:
    """Return the partition of a launch for these matrices."""
    values = matrices[0].values
    return cut(tokens, *values.shape[1:], matrices=len(matrices), item_bytes=values.dtype.itemsize)


def kind_of(x, matrices: Sequence[Matrix]) -> Kind:
    """Return the key of the kernel's runs in the record."""
    return Kind(None, x.dtype.name, cut=cut_name(group_of(matrices[0]), len(matrices) == 3))


def cut_name(group: int | None, is_gated: bool) -> str:
    """Name the storage of the weights, by `group_of`, and whether up and gate are read together."""
    stored = {None: "16 bits", 0: "INT8"}.get(group, "INT8 in groups")
    return f"{stored}, gated" if is_gated else stored


def unsupported(x, matrices: Sequence[Matrix]) -> str | None:
    """Return why the kernel does not support this, in a few words; None if it does.

    Args:
      x: [tokens, d_model].
      matrices: up, gate if there is one, and down.
    """
    if x.dtype.name not in DTYPES:
        return f"x is {x.dtype}, and it has {' and '.join(DTYPES)}"
    if x.shape[0] > _MOST_TOKENS:
        return f"it is for decoding {_MOST_TOKENS} tokens at most, and there are {x.shape[0]}"
    for matrix in matrices:
        _, inputs, outputs = matrix.values.shape
        # Swizzled rows must be whole: 128 bytes.
        multiple = STEP if matrix.scales is None else 2 * STEP
        if inputs % multiple or outputs % multiple:
            stored = matrix.values.dtype
            return f"a matrix is {inputs} x {outputs} {stored}, it takes multiples of {multiple}"
        group = group_of(matrix)
        if group and group % STEP:
            return f"{group} inputs share a scale, and it takes all, or a multiple of {STEP}"
        if matrix.scales is None and matrix.values.dtype != x.dtype:
            return f"x is {x.dtype} and a matrix {matrix.values.dtype}"
    *firsts, _ = matrices
    if len({(m.values.dtype, group_of(m), m.bias is None) for m in firsts}) > 1:
        return "up and gate are stored differently"
    return dispatch.not_hopper()
