"""Intervals cover the true value as often as they claim."""

import numpy as np
import pytest

from parallax.studies.quality.intervals import exp_interval, mean_interval, ratio_interval


def ends(figure):
    assert figure.low is not None
    assert figure.high is not None
    return figure.low, figure.high


def test_nineteen_of_twenty_intervals_hold_the_mean():
    rng = np.random.default_rng(0)
    held = 0
    for i in range(200):
        found = mean_interval(rng.normal(0.3, 2.0, 80), "nats/byte", seed=i)
        low, high = ends(found)
        held += low <= 0.3 <= high
    assert 180 <= held <= 198


def test_pairs_are_drawn_together():
    """What both of a pair share leaves the interval of their difference."""
    rng = np.random.default_rng(0)
    hard = rng.normal(2.0, 1.0, 100)
    worse = hard + 0.01 + rng.normal(0, 1e-3, 100)
    alone, paired = mean_interval(worse, "x"), exp_interval(worse - hard, "%", growth=True)
    low, high = ends(alone)
    assert high - low > 0.2
    assert paired.value == pytest.approx(1.005, abs=0.05)
    low, high = ends(paired)
    assert 0.9 < low < paired.value < high < 1.1


def test_perplexity_is_exp_of_the_mean():
    found = exp_interval(np.full(5, np.log(3.0)), "1")
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 3.0, 3.0))
    same = exp_interval(np.zeros(5), "%", growth=True)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_a_few_ratios():
    """By hand: logarithms 0 and ln 4, mean ln 2, half width 12.706 x (ln 4 / 2)."""
    found = ratio_interval(np.asarray([1.0, 4.0]))
    assert found.value == pytest.approx(2.0)
    assert found.high == pytest.approx(2.0 * np.exp(12.7062 * np.log(2)), rel=1e-3)
    assert ratio_interval(np.asarray([1.5])).low is None
    with pytest.raises(ValueError, match="must be positive"):
        ratio_interval(np.asarray([1.0, 0.0]))
    with pytest.raises(ValueError, match="must be positive"):
        ratio_interval(np.asarray([]))
