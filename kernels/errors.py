"""Errors of a kernel's output against its value in float64, and the criteria for it to be right.

Where the value is infinite, the output must be the same infinity; a NaN is an infinite error. A
right kernel keeps bounds on its errors and gives the same bits on every call.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

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


def relative_error(out, expected) -> float:
    """Compute the norm of the difference over the norm of the expected values."""
    wrong, right = _finite(out, expected)
    return _over(float(np.linalg.norm(wrong)), float(np.linalg.norm(right)))


def largest_error(out, expected) -> float:
    """Compute the largest difference over the largest expected magnitude."""
    wrong, right = _finite(out, expected)
    return _over(float(np.abs(wrong).max(initial=0)), float(np.abs(right).max(initial=0)))


def _finite(out, expected) -> tuple[np.ndarray, np.ndarray]:
    """Return flat differences and expected values, both 0 where both are the same infinity."""
    out, expected = (np.asarray(x).astype(np.float64).ravel() for x in (out, expected))
    if out.size != expected.size:
        raise ValueError(f"{out.size} values, and {expected.size} expected")
    same = np.isinf(expected) & (out == expected)
    out, expected = np.where(same, 0, out), np.where(same, 0, expected)
    # Infinite instead of finite, or finite instead of infinite: an infinite error either way.
    is_wrong = ~(np.isfinite(out) & np.isfinite(expected))
    with np.errstate(invalid="ignore"):
        wrong = np.where(is_wrong, np.inf, out - expected)
    return wrong, np.where(np.isfinite(expected), expected, 0)


def _over(wrong: float, right: float) -> float:
    if wrong == 0:
        return 0.0
    return wrong / right if right else float("inf")
