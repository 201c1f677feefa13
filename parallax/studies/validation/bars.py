"""Error bars from residuals on rows that were not fitted: conformal, by regime.

A row's bar comes from the held-out residuals of the other folds' rows in its regime, so that no row
has a part in its own bar. The bars that are shipped come from all of them.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from parallax.studies.validation.scores import Judged

LEVEL = 0.8
LEAST_ROWS = 30  # of a regime with bars of its own; others share those of their table


def with_bars(rows: Sequence[Judged]) -> list[Judged]:
    """Return the rows of one table and figure, each with the bar that the others' residuals give.

    A row of a regime with fewer than 30 others takes the residuals of the whole table. Rows in no
    fold leave out themselves alone.
    """
    residuals = np.array([-row.log_ratio for row in rows])
    folds = np.array([n if row.fold is None else row.fold for n, row in enumerate(rows)])
    regimes = np.array([row.regime for row in rows])
    barred = []
    for row, fold in zip(rows, folds, strict=True):
        others = folds != fold
        own = others & (regimes == row.regime)
        low, high = interval(residuals[own if own.sum() >= LEAST_ROWS else others])
        barred.append(dataclasses.replace(row, low=row.modelled * low, high=row.modelled * high))
    return barred


def interval(residuals: np.ndarray) -> tuple[float, float]:
    """Return the ends of the central 80 % of measured / modelled, from their logarithms.

    The quantiles are those of split conformal prediction: with n residuals the (n + 1) share, so
    that the interval of few rows is wider. Without any, (0, inf).
    """
    n = len(residuals)
    if not n:
        return 0.0, math.inf
    tail = (1 - LEVEL) / 2
    ordered = np.sort(residuals)
    below = math.floor(tail * (n + 1))
    if below < 1:
        return float(np.exp(2 * min(ordered[0], 0.0))), float(np.exp(2 * max(ordered[-1], 0.0)))
    return float(np.exp(ordered[below - 1])), float(np.exp(ordered[n - below]))
