"""Scores and bars of judged rows, on rows whose right answers are known."""

import math

import numpy as np
import pytest

from parallax.studies.validation.bars import interval, with_bars
from parallax.studies.validation.scores import Judged, score


def judged(modelled, measured, **more):
    return Judged("t", "step", "row", modelled, measured, **more)


def test_errors_and_bias():
    found = score([judged(1.1, 1.0), judged(0.8, 1.0), judged(1.0, 1.0)])
    assert found.n == 3
    assert found.median == pytest.approx(0.1)
    assert found.worst == pytest.approx(0.2)
    assert found.mean == pytest.approx(0.1)
    assert found.bias == pytest.approx(0.0)


def test_order_and_regret_within_groups():
    times = [(1.0, 1.2), (2.0, 1.0), (3.0, 3.0)]  # the first choice takes 1.2, the fastest 1.0
    rows = [judged(a, b, group="g") for a, b in times]
    found = score([*rows, judged(9.0, 0.1)])  # a row of no group is not ranked
    assert found.tau == pytest.approx(1 / 3)
    assert found.regret == pytest.approx(0.2)
    assert score(rows[:2]).tau is None  # two rows have no order to speak of


def test_a_group_ranks_by_seconds_per_token():
    rows = [judged(s * n, s * n, group="g", work=n) for s, n in ((1.0, 8), (2.0, 1), (3.0, 2))]
    assert score(rows).tau == pytest.approx(1.0)
    swapped = [judged(1 / r.modelled, r.measured, group="g", work=r.work) for r in rows]
    tau = score(swapped).tau
    assert tau is not None
    assert tau < 1


def test_trend_over_the_tensor_degree():
    rows = [judged(n**0.1, 1.0, tensor=n) for n in (1, 2, 4, 8)]
    assert score(rows).trend == pytest.approx(0.1)
    assert score(rows[:1]).trend is None


def test_bars_cover_what_they_promise():
    rng = np.random.default_rng(0)
    rows = [judged(1.0, math.exp(rng.normal(0.3, 0.2)), fold=n % 5, regime="ab"[n % 2])
            for n in range(2000)]  # fmt: skip
    assert score(with_bars(rows)).coverage == pytest.approx(0.8, abs=0.02)


def test_bars_are_those_of_the_regime():
    rng = np.random.default_rng(0)
    widths = {"narrow": 0.01, "wide": 0.5}
    rows = [judged(1.0, math.exp(rng.normal(0, widths[r])), fold=n % 5, regime=r)
            for n in range(500) for r in widths]  # fmt: skip
    for regime in widths:
        mine = [row for row in with_bars(rows) if row.regime == regime]
        assert score(mine).coverage == pytest.approx(0.8, abs=0.04)


def test_a_row_has_no_part_in_its_own_bar():
    rows = [judged(1.0, 1.0, fold=n % 5) for n in range(99)]
    off = with_bars([*rows, judged(1.0, 50.0, fold=4)])[-1]
    assert off.covered is False
    assert off.high == pytest.approx(1.0)


def test_few_residuals_make_wide_bars():
    assert interval(np.array([])) == (0.0, math.inf)
    low, high = interval(np.log([0.9, 1.2]))
    assert low == pytest.approx(0.81)
    assert high == pytest.approx(1.44)


def test_no_rows():
    with pytest.raises(ValueError, match="no rows"):
        score([])
