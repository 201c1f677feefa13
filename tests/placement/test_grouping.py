"""Placement: the optimum against brute force, greedy never better, large ones at once."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.placement import Device, greedy, optimal

WHOLE = st.integers(1, 40)


def cost_of(stops, costs, devices):
    starts = (0, *stops[:-1])
    return max(sum(costs[a:b]) / d.speed for a, b, d in zip(starts, stops, devices, strict=True))


def brute_force(sizes, costs, devices):
    """The least cost over all contiguous placements; None if none keeps every budget."""
    n, best = len(sizes), None
    for cuts in itertools.combinations_with_replacement(range(n + 1), len(devices) - 1):
        stops = (*cuts, n)
        starts = (0, *cuts)
        if all(sum(sizes[a:b]) <= d.budget for a, b, d in zip(starts, stops, devices, strict=True)):
            cost = cost_of(stops, costs, devices)
            best = cost if best is None else min(best, cost)
    return best


@settings(max_examples=400, deadline=None)
@given(
    layers=st.lists(st.tuples(WHOLE, WHOLE), min_size=1, max_size=8),
    devices=st.lists(st.tuples(st.integers(10, 120), st.integers(1, 4)), min_size=1, max_size=4),
)
def test_the_optimum_is_brute_force_s(layers, devices):
    sizes, costs = (list(x) for x in zip(*layers, strict=True))
    devices = [Device(*d) for d in devices]
    best = brute_force(sizes, costs, devices)
    if best is None:
        for place in (greedy, optimal):
            with pytest.raises(ValueError, match="layers"):
                place(sizes, costs, devices)
        return
    found = optimal(sizes, costs, devices)
    assert found.cost == pytest.approx(best, rel=1e-12)
    assert cost_of(found.stops, costs, devices) == pytest.approx(found.cost)
    rule = greedy(sizes, costs, devices)
    assert rule.cost >= found.cost * (1 - 1e-12)
    for placement in (found, rule):
        taken = [i for group in placement.groups for i in group]
        assert taken == list(range(len(sizes)))
        for group, device in zip(placement.groups, devices, strict=True):
            assert sum(sizes[i] for i in group) <= device.budget


def test_greedy_fills_the_first_and_leaves_the_last_idle():
    devices = [Device(4.0)] * 4
    rule = greedy([1.0] * 8, [1.0] * 8, devices)
    assert rule.stops == (4, 8, 8, 8)
    assert rule.cost == 4
    best = optimal([1.0] * 8, [1.0] * 8, devices)
    assert best.cost == 2
    assert [len(g) for g in best.groups] == [2, 2, 2, 2]


def test_a_slow_device_gets_less():
    found = optimal([1.0] * 9, [1.0] * 9, [Device(99, 2.0), Device(99, 1.0)])
    assert [len(g) for g in found.groups] == [6, 3]


def test_ten_thousand_layers_on_a_thousand_devices_at_once():
    """Whether it is right; how long it takes is in docs/design.md."""
    layers = 10_000
    sizes = [1.0 + (i * 7919 % 101) / 100 for i in range(layers)]
    found = optimal(sizes, sizes, [Device(1e9)] * 1024)
    floor = max(max(sizes), math.fsum(sizes) / 1024)
    assert floor <= found.cost <= floor + max(sizes)


@pytest.mark.parametrize("bad", [(0, 1), (-1, 1), (1, 0)])
def test_a_device_of_nothing_is_refused(bad):
    with pytest.raises(ValueError, match="above 0"):
        Device(*bad)


def test_a_layer_that_fits_nowhere_is_named():
    with pytest.raises(ValueError, match="layer 1 has 9 bytes"):
        optimal([1, 9, 1], [1, 1, 1], [Device(5)] * 3)
    with pytest.raises(ValueError, match="0 sizes"):
        greedy([], [], [Device(1)])


@pytest.mark.parametrize(
    ("sizes", "costs", "devices", "why"),
    [
        ([1.0], [1.0], [], "0 devices"),
        ([], [], [Device(1)], "0 sizes"),
        ([1.0], [1.0, 2.0], [Device(1)], "2 costs"),
        ([1.0, -2.0], [1.0, 1.0], [Device(1)], "at least 0, got -2"),
    ],
)
@pytest.mark.parametrize("rule", [greedy, optimal])
def test_what_is_no_placement_problem_is_refused(rule, sizes, costs, devices, why):
    with pytest.raises(ValueError, match=why):
        rule(sizes, costs, devices)
