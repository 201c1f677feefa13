"""A robust fit of positive constants to seconds, and errors on rows that a fit has not seen."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import least_squares

from parallax.cost.measurements import fold_of

FOLDS = 5


def fit(
    bounds: Mapping[str, tuple[float, float, float]],
    times: Callable[[dict[str, float]], np.ndarray],
    measured: np.ndarray,
) -> dict[str, float]:
    """Fit constants by the logarithms of modelled over measured, outliers weighing little.

    Args:
      bounds: name of a constant -> (initial guess, least, largest value).
      times: constants -> modelled seconds [r].
      measured: seconds [r].

    Returns:
      Name -> value, to four digits.
    """
    begin, low, high = np.log(np.array(list(bounds.values()))).T

    def named(x: np.ndarray) -> dict[str, float]:
        return dict(zip(bounds, np.exp(x).tolist(), strict=True))

    found = least_squares(
        lambda x: np.log(times(named(x)) / measured), begin, loss="soft_l1", f_scale=0.05,
        diff_step=1e-4, bounds=(low, high),
    )  # fmt: skip
    return {name: float(f"{value:.4g}") for name, value in named(found.x).items()}


def held_out[Row, Fit](
    rows: Sequence[Row],
    key: Callable[[Row], str],
    fitted: Callable[[list[Row]], Fit],
    predicted: Callable[[Fit, list[Row]], np.ndarray],
) -> np.ndarray:
    """Return the seconds [r] that each row is given by the fit to the four folds without it."""
    folds = np.array([fold_of(key(row)) for row in rows])
    modelled = np.empty(len(rows))
    for fold in range(FOLDS):
        inside = [row for row, f in zip(rows, folds, strict=True) if f != fold]
        outside = [row for row, f in zip(rows, folds, strict=True) if f == fold]
        if outside:
            modelled[folds == fold] = predicted(fitted(inside), outside)
    return modelled


def quantiles(modelled: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """Return the 10 and 90 % quantiles of measured / modelled over held-out rows.

    They are a cross-conformal interval: ranks among n + 1 rows, of which the new one is one.
    """
    ratios = np.sort(measured / modelled)
    n = len(ratios)
    low, high = max(0, int(0.1 * (n + 1)) - 1), min(n - 1, int(np.ceil(0.9 * (n + 1))) - 1)
    return float(ratios[low]), float(ratios[high])
