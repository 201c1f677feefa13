"""How far predictions are off: errors, bias, coverage of bars, order and regret within groups."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau

LEAST_RANKED = 3  # rows that a group needs for its order to be judged


@dataclass(frozen=True)
class Judged:
    """One measured figure beside its prediction.

    Attributes:
      table: the table that it is from.
      figure: "step", "memory", "ttft", "tpot" or the name of a kernel's time.
      label: its row in words.
      modelled, measured: the two figures, seconds or bytes.
      regime: the rows whose residuals make its error bar.
      fold: the fold in which it was held out; None if nothing was fitted to its table.
      low, high: ends of the 80 % bar of `measured`; None without one.
      group: rows that compete with each other, such as all layouts of a model on some nodes; ""
        for rows that are not ranked.
      work: tokens of the step, so that a group ranks by seconds per token.
      tensor: tensor-parallel degree, for the trend; 0 where it has none.
    """

    table: str
    figure: str
    label: str
    modelled: float
    measured: float
    regime: str = ""
    fold: int | None = None
    low: float | None = None
    high: float | None = None
    group: str = ""
    work: float = 1.0
    tensor: int = 0

    @property
    def log_ratio(self) -> float:
        """log(modelled / measured): 0.1 is about 10 % too slow."""
        return math.log(self.modelled / self.measured)

    @property
    def error(self) -> float:
        """The relative error, |modelled / measured - 1|."""
        return abs(self.modelled / self.measured - 1)

    @property
    def covered(self) -> bool | None:
        """Whether the bar holds the measured figure; None without a bar."""
        if self.low is None or self.high is None:
            return None
        return self.low <= self.measured <= self.high


@dataclass(frozen=True)
class Score:
    """The summary of some judged rows; ratios, not percent.

    Attributes:
      n: rows.
      median, p90, mean, worst: of the relative errors.
      bias: median of modelled / measured, minus 1.
      coverage: share of measured figures inside their bars; None without bars.
      tau: Kendall's tau of the order within groups, the mean over groups by their rows; None where
        nothing is ranked.
      regret: how much slower the first choice of a group is than its fastest row, the mean over
        groups.
      trend: slope of log(modelled / measured) over log(tensor degree); None for one degree.
    """

    n: int
    median: float
    p90: float
    mean: float
    worst: float
    bias: float
    coverage: float | None = None
    tau: float | None = None
    regret: float | None = None
    trend: float | None = None


def score(rows: Sequence[Judged]) -> Score:
    """Summarise rows of one kind of figure; ValueError if there are none."""
    if not rows:
        raise ValueError("score: no rows, expected at least one.")
    apart = np.array([row.error for row in rows])
    ratios = np.array([row.log_ratio for row in rows])
    covered = [row.covered for row in rows if row.covered is not None]
    tau, regret = _order(rows)
    return Score(
        len(rows), float(np.median(apart)), float(np.quantile(apart, 0.9)), float(apart.mean()),
        float(apart.max()), math.expm1(float(np.median(ratios))),
        float(np.mean(covered)) if covered else None, tau, regret, _trend(rows, ratios),
    )  # fmt: skip


def _order(rows: Iterable[Judged]) -> tuple[float | None, float | None]:
    groups: Mapping[str, list[Judged]] = defaultdict(list)
    for row in rows:
        if row.group:
            groups[row.group].append(row)
    taus, regrets, weights = [], [], []
    for members in groups.values():
        if len(members) < LEAST_RANKED:
            continue
        modelled = [row.modelled / row.work for row in members]
        measured = [row.measured / row.work for row in members]
        found: Any = kendalltau(modelled, measured)
        taus.append(0.0 if math.isnan(found.statistic) else float(found.statistic))
        regrets.append(measured[int(np.argmin(modelled))] / min(measured) - 1)
        weights.append(len(members))
    if not taus:
        return None, None
    return float(np.average(taus, weights=weights)), float(np.mean(regrets))


def _trend(rows: Sequence[Judged], ratios: np.ndarray) -> float | None:
    degrees = np.array([row.tensor for row in rows])
    if not degrees.min() or degrees.min() == degrees.max():
        return None
    return float(np.polyfit(np.log(degrees), ratios, 1)[0])
