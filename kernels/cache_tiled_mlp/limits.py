"""The shapes and dtypes that the Mosaic kernel supports."""

from collections.abc import Sequence

from parallax.kernels import dispatch
from parallax.kernels.cache_tiled_mlp.reference import Matrix, group_of
from parallax.kernels.chip import DTYPES
from parallax.kernels.validation import Kind

# Rows of a matrix per step: 128 bytes of 16-bit activations, one swizzle.
STEP = 64
# With more, products are bound by the tensor cores, where XLA's library is the better choice.
MOST_TOKENS = 512


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
    if x.shape[0] > MOST_TOKENS:
        return f"it is for decoding {MOST_TOKENS} tokens at most, and there are {x.shape[0]}"
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
