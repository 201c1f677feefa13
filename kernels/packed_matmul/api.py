"""The operation and its dispatch: few tokens by a packed weight.

Shapes: T tokens, K inputs, O outputs.
"""

import jax
from jaxtyping import Array, Float

from parallax.kernels import dispatch
from parallax.kernels.packed_matmul import reference
from parallax.kernels.packed_matmul.limits import kind_of, unsupported
from parallax.kernels.packed_matmul.reference import PackedMatrix


def packed_matmul(
    x: Float[Array, "t k"], matrix: PackedMatrix, *, implementation: str | None = None
) -> Float[Array, "t o"]:
    """Compute x times the weight that `matrix` stores, reading it packed.

    Args:
      x: [T, K] floating point.
      matrix: a weight [K, O] in INT8, in INT4, or in either or x's dtype with 2:4 sparsity.
      implementation: "xla", which supports all of this; "mosaic", a kernel for Hopper GPUs: float16
        and bfloat16, at most 64 tokens, K and O multiples of 128, scales shared by all inputs or by
        a multiple of 128; or None, the fastest that supports the call and is validated
        (`dispatch.choose`).

    Returns:
      [T, O] float32 (float64 for float64): sums of products. "xla" rounds scaled weights to x's
      dtype first; "mosaic" multiplies integers, and scales their sums.

    Raises:
      ValueError: arrays whose shapes do not match.
      NotImplementedError: the implementation does not support this; the message names one that
        does. Also a gradient through "mosaic", which is for decoding.

    Cost: 2 T K O FLOPs. "mosaic" reads each stored byte from device memory once; it writes partial
      sums [splits, O, T], which XLA adds. "xla" writes the weight unpacked and reads it again.
    """
    _check(x, matrix)
    if runs_kernel(x, matrix, implementation=implementation):
        # Imported late: the kernel language takes a while to load.
        from parallax.kernels.packed_matmul import mosaic

        return mosaic.matmul(x, matrix)
    return reference.matmul(x, matrix)


def runs_kernel(x: jax.Array, matrix: PackedMatrix, *, implementation: str | None = None) -> bool:
    """Return whether `packed_matmul` would run "mosaic", for callers with their own fallback.

    Raises:
      NotImplementedError: as `packed_matmul`.
    """
    reasons = {"mosaic": unsupported(x, matrix), "xla": None}
    kind = kind_of(x, matrix)
    return dispatch.choose("packed_matmul", implementation, reasons, kind=kind) == "mosaic"


def _check(x: jax.Array, matrix: PackedMatrix) -> None:
    inputs, outputs = matrix.shape
    positions, scales = matrix.positions, matrix.scales
    wrong = x.ndim != 2 or x.shape[1] != inputs or matrix.values.shape[0] % matrix.rows
    wrong = wrong or (positions is not None and positions.shape != (inputs // matrix.unit, outputs))
    wrong = wrong or (
        scales is not None and (scales.shape[1] != outputs or inputs % scales.shape[0] != 0)
    )
    if wrong:
        shapes = [None if a is None else a.shape for a in matrix]
        raise ValueError(
            f"packed_matmul: x {x.shape} does not fit values, positions and scales of shapes "
            f"{shapes}, a matrix of {inputs} inputs and {outputs} outputs."
        )
