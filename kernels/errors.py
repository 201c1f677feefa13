"""Errors of a kernel's output against its value in float64.

Where the value is infinite, the output must be the same infinity; a NaN is an infinite error.
"""

import numpy as np


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
