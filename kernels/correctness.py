"""The criteria for a kernel to be right: bounds on its error, and the same bits on every call."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from parallax.kernels.errors import largest_error

# The largest allowed error of an output, as a share of its largest magnitude, by the dtype of the
# products. Bounds are absolute: XLA's own error is no reference, since XLA may skip rounding the
# probabilities where a key head has one query, and is then many times more accurate. Sums of
# integers are exact.
BOUNDS = {"bfloat16": 6e-3, "float16": 1e-3, "int8": 0.0}
# Makes XLA round where the program says so, so that its error compares with a kernel's.
REFERENCE_FLAGS = "--xla_allow_excess_precision=false"


class Verdict(NamedTuple):
    """The verdict on a kernel's correctness.

    Attributes:
      errors: the largest error of each output over all calls, as a share of its largest magnitude.
      is_repeatable: whether every call gave the same bits.
      is_right: whether it is repeatable and no error exceeds the bound.
    """

    errors: tuple[float, ...]
    is_repeatable: bool
    is_right: bool


def judge(dtype: str, calls: Sequence[Sequence[Any]], expected: Sequence[Any]) -> Verdict:
    """Judge several calls of one kernel on the same inputs.

    Args:
      dtype: dtype of the kernel's products, one of BOUNDS.
      calls: the outputs of each call.
      expected: the outputs in float64.
    """
    calls = [[np.asarray(x) for x in outputs] for outputs in calls]
    errors = tuple(
        max(largest_error(outputs[i], right) for outputs in calls)
        for i, right in enumerate(map(np.asarray, expected))
    )
    first, *others = calls
    is_repeatable = all(
        x.tobytes() == y.tobytes()
        for outputs in others
        for x, y in zip(first, outputs, strict=True)
    )
    within = len(first) == len(errors) and all(error <= BOUNDS[dtype] for error in errors)
    return Verdict(errors, is_repeatable, is_repeatable and within)
