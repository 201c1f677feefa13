"""The operation and its dispatch: few tokens by a packed weight.

Shapes: T tokens, K inputs, O outputs; optional E experts.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num

from parallax.kernels import dispatch
from parallax.kernels.packed_matmul import reference
from parallax.kernels.packed_matmul.limits import kind_of, unsupported
from parallax.kernels.packed_matmul.reference import PackedMatrix


def packed_matmul(
    x: Num[Array, "*e t k"], matrix: PackedMatrix, *, implementation: str | None = None
) -> Num[Array, "*e t o"]:
    """Compute x times the weight that `matrix` stores, reading it packed.

    Args:
      x: [T, K] floating point; or int8, for a dense INT8 weight without scales. With one more dim
        in front, [E, T, K], each expert's tokens.
      matrix: a weight [K, O] in INT8, in INT4, or in either or x's dtype with 2:4 sparsity; for
        each expert, if x has experts.
      implementation: "xla", which supports all of this; "mosaic", a kernel for Hopper GPUs:
        float16, bfloat16 and int8, at most 64 tokens, K and O multiples of 128, scales shared by
        all inputs or by a multiple of 128; or None, the fastest that supports the call and is
        validated (`dispatch.choose`).

    Returns:
      [T, O] float32 (float64 for float64), or [E, T, O]: sums of products. "xla" rounds scaled
      weights to x's dtype first; "mosaic" multiplies integers, and scales their sums. For int8 x
      exact sums, in int32.

    Raises:
      ValueError: arrays whose shapes do not match.
      NotImplementedError: the implementation does not support this; the message names one that
        does. Also a gradient through "mosaic", which is for decoding.

    Cost: 2 E T K O FLOPs. "mosaic" reads each stored byte from device memory once; it writes
      partial sums [E, splits, O, T], which XLA adds. "xla" writes the weight unpacked and reads it
      again, unless x is int8.
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
    values, positions, scales = matrix
    if x.dtype == jnp.int8 and (values.dtype, positions, scales) != (jnp.int8, None, None):
        raise ValueError(
            "packed_matmul: int8 x multiplies an int8 matrix without positions and scales; scale "
            "the sums, or pass x in a floating-point dtype."
        )
    lead = matrix.lead
    wrong = len(lead) > 1 or x.shape[:-2] != lead or values.shape[-2] % matrix.rows
    wrong = wrong or x.ndim != len(lead) + 2 or x.shape[-1] != inputs
    if positions is not None:
        wrong = wrong or positions.shape != (*lead, inputs // matrix.unit, outputs)
    if scales is not None:
        wrong = wrong or scales.shape[:-2] != lead
        wrong = wrong or scales.shape[-1] != outputs or inputs % scales.shape[-2]
    if wrong:
        shapes = [None if a is None else a.shape for a in matrix]
        raise ValueError(
            f"packed_matmul: x {x.shape} does not fit values, positions and scales of shapes "
            f"{shapes}, a matrix of {inputs} inputs and {outputs} outputs."
        )
