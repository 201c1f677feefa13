"""The interval of a paired ratio covers the true value as often as it claims, despite drift."""

import math

import numpy as np
import pytest

from parallax.studies.pairs.paired_runs import paired_ratio, run_pairs

TRUTH = 1.2


def within(truth, figure):
    assert figure.low is not None
    assert figure.high is not None
    return figure.low <= truth <= figure.high


def trials(seed, count=2000, pairs=20, drift=0.0):
    """Shares of intervals that hold TRUTH: by pairs, and of unpaired means over each other."""
    rng = np.random.default_rng(seed)
    held, middles = 0, []
    for _ in range(count):
        # A clock that slows down to `1 + drift` over the run, for both.
        slow = 1 + drift * np.linspace(0, 1, pairs)
        first = slow * rng.lognormal(0, 0.1, pairs)
        second = TRUTH * slow * rng.lognormal(0, 0.1, pairs)
        found = paired_ratio(first, second)
        held += within(TRUTH, found)
        middles.append(found.value)
    return held / count, math.exp(np.mean(np.log(middles)))


@pytest.mark.parametrize("drift", [0.0, 3.0])
def test_the_interval_holds_the_truth_in_95_of_100(drift):
    """2,000 trials: four standard deviations of the share are 2 points."""
    share, middle = trials(0, drift=drift)
    assert share == pytest.approx(0.95, abs=0.02)
    assert middle == pytest.approx(TRUTH, rel=0.002)


class Machine:
    """A clock that a call turns on; slower with every call."""

    def __init__(self, drift=0.0, order=1.0):
        self.now, self.calls, self.drift, self.order = 0.0, 0, drift, order

    def call(self, seconds):
        def run():
            # The second of a pair may find things warm.
            warm = self.order if self.calls % 2 else 1.0
            self.now += seconds * warm * (1 + self.drift * self.calls)
            self.calls += 1

        return run

    def pairs(self, number, seed=0):
        return run_pairs(self.call(1.0), self.call(TRUTH), number, seed=seed,
                         clock=lambda: self.now)  # fmt: skip


def test_exact_where_nothing_disturbs():
    found = Machine().pairs(10)
    assert found.ratio.value == pytest.approx(TRUTH)
    assert found.ratio.low == pytest.approx(TRUTH)
    assert found.decided
    assert len(found.first_s) == len(found.second_s) == 10


def test_drift_over_the_run_does_not_bias_it():
    """Each second run of a pair is a little slower: orders in balance take that out."""
    machine = Machine(drift=0.01)
    found = machine.pairs(100)
    assert machine.now > 2 * 100 * TRUTH  # it more than doubles
    assert found.ratio.value == pytest.approx(TRUTH, rel=0.002)
    assert within(TRUTH, found.ratio)
    # Always the same order, as one after the other would be: off by what a call adds.
    assert sum(found.first_ran_first) == 50
    assert found.first_ran_first != tuple(i % 2 == 0 for i in range(100))


def test_an_effect_of_order_is_balanced():
    assert Machine(order=0.5).pairs(100).ratio.value == pytest.approx(TRUTH, rel=1e-6)


def test_equal_programs_are_undecided():
    rng = np.random.default_rng(1)
    found = paired_ratio(rng.lognormal(0, 0.1, 100), rng.lognormal(0, 0.1, 100))
    assert within(1.0, found)
    assert found.tag == "measured"


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2 pairs, got 1"):
        run_pairs(lambda: 0, lambda: 0, 1)
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired_ratio([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="above 0"):
        paired_ratio([1, 0], [1, 2])
