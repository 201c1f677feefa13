"""The matrices that the Mosaic kernel supports, and its partition, without the kernel language.

Every thread block streams one tile, 128 outputs by a share of the inputs, in steps of 128 inputs;
each of two warpgroups multiplies half of a step.
"""

from parallax.kernels import dispatch
from parallax.kernels.chip import DTYPES, splits_of
from parallax.kernels.packed_matmul.reference import PackedMatrix
from parallax.kernels.validation import Kind

# Inputs of a step, and of one warpgroup's part: 128 bytes of 16-bit activations, one swizzle.
STEP, PART = 128, 64
COLUMNS = 128  # outputs of a block, two wgmma high
# With more, rows would cross the L2 cache more often than packed weights do.
MOST_TOKENS = 64
_SUM_BYTES = 4


def kind_of(x, matrix: PackedMatrix) -> Kind:
    """Return the key of the kernel's runs in the record: bits, sparsity, scales of groups."""
    sparse = "" if matrix.positions is None else ", 2:4"
    grouped = ", grouped" if matrix.group < matrix.shape[0] else ""
    return Kind(None, x.dtype.name, cut=f"{matrix.bits} bits{sparse}{grouped}")


def unsupported(x, matrix: PackedMatrix) -> str | None:
    """Return why the kernel does not support x [..., T, K] by a matrix, in a few words, or None."""
    reason = unsupported_sizes(x.dtype.name, x.shape[-2], *matrix.shape, matrix.group)
    return reason or dispatch.not_hopper()


def unsupported_sizes(dtype: str, tokens: int, inputs: int, outputs: int, group: int) -> str | None:
    """Return why the kernel does not support rows of these; `group` inputs share a scale."""
    if dtype not in (*DTYPES, "int8"):
        return f"x is {dtype}, and it has {', '.join(DTYPES)} and int8"
    if tokens > MOST_TOKENS:
        return f"it is for decoding {MOST_TOKENS} tokens at most, and there are {tokens}"
    if inputs % STEP or outputs % COLUMNS:
        return (
            f"a matrix is {inputs} x {outputs}, and it takes multiples of {STEP} inputs and "
            f"{COLUMNS} outputs"
        )
    if group % STEP:
        return f"{group} inputs share a scale, and it takes all, or a multiple of {STEP}"
    return None


def splits(
    tokens: int, inputs: int, outputs: int, group: int, bits_per_weight: float, experts: int = 1
) -> int:
    """Return the parts of the inputs, each with sums of its own.

    Args:
      tokens, inputs, outputs: sizes.
      group: inputs that share a scale, which stay together; all of them if it is `inputs`.
      bits_per_weight: stored bits of values and positions per weight.
      experts: matrices of these sizes, each with so many tokens.
    """
    part = STEP if group == inputs else group
    sums_bytes = experts * tokens * outputs * _SUM_BYTES
    return splits_of(
        inputs // part, experts * outputs // COLUMNS, part * COLUMNS * bits_per_weight / 8,
        sums_bytes, is_direct=False,
    )  # fmt: skip
