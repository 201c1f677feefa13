"""Mixed-precision assignments against brute force over all assignments."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.compression.mixing import Choice, assign_mix

CHOICE = st.tuples(st.integers(0, 30), st.floats(-1, 10, allow_nan=False))
SLOTS = st.lists(st.lists(CHOICE, min_size=1, max_size=4), min_size=1, max_size=5)


def choices(slots):
    return [[Choice(str(i), b, d) for i, (b, d) in enumerate(slot)] for slot in slots]


def every_mix(slots, budget):
    """(damage, bytes) of the best of all, by trying all."""
    sums = [
        (math.fsum(c.damage for c in mix), sum(c.n_bytes for c in mix))
        for mix in itertools.product(*slots)
    ]
    return min((s for s in sums if s[1] <= budget), default=None)


@given(SLOTS, st.integers(0, 100))
def test_nothing_is_milder(slots, budget):
    slots = choices(slots)
    best = every_mix(slots, budget)
    if best is None:
        with pytest.raises(ValueError, match="more than the budget"):
            assign_mix(slots, budget)
        return
    found = assign_mix(slots, budget)
    assert found.n_bytes <= budget
    assert found.damage == pytest.approx(best[0], abs=1e-9)
    picked = [slot[int(name)] for slot, name in zip(slots, found.names, strict=True)]
    assert sum(c.n_bytes for c in picked) == found.n_bytes
    assert math.fsum(c.damage for c in picked) == pytest.approx(found.damage)


def test_greedy_would_be_wrong():
    """The cheapest damage a byte saved goes first and leaves a slot that then has to be ruined."""
    a = [Choice("whole", 10, 0.0), Choice("half", 5, 1.0)]
    b = [Choice("whole", 10, 0.0), Choice("half", 4, 1.1)]
    found = assign_mix([a, b], 14)
    assert found.names == ("whole", "half")
    assert found.damage == 1.1


def test_sixteen_layers_of_unlike_sensitivity_end():
    """8**32 mixes: without pruning this takes hours."""
    sizes = (1000, 510, 330, 270, 210, 150, 120, 90)
    slots = [
        [Choice(str(j), s + k, (j * j) * (1 + math.sin(7 * k + j)) / 10)
         for j, s in enumerate(sizes)]
        for k in range(32)
    ]  # fmt: skip
    found = assign_mix(slots, 32 * 250)
    assert found.n_bytes <= 32 * 250


@pytest.mark.parametrize("slots", [[], [[]], [[Choice("a", 1, 0.0)], []]])
def test_nothing_to_choose_from(slots):
    with pytest.raises(ValueError, match="at least one choice"):
        assign_mix(slots, 10)


def test_damage_that_nobody_measured():
    with pytest.raises(ValueError, match="finite damage"):
        Choice("int8", 1, math.nan)
