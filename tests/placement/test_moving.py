"""Placement after a loss: brute force over all placements under the limit; what can stay does."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.placement import Device, least_moved, optimal

WHOLE = st.integers(1, 20)


def moved_and_squares(stops, sizes, costs, held):
    groups = [range(a, b) for a, b in zip((0, *stops), stops, strict=False)]
    moved = sum(sizes[i] for g, h in zip(groups, held, strict=True) for i in g if i not in h)
    return moved, sum(sum(costs[i] for i in g) ** 2 for g in groups)


@given(
    layers=st.lists(st.tuples(WHOLE, WHOLE), min_size=3, max_size=8),
    budgets=st.lists(st.integers(15, 120), min_size=1, max_size=3),
    data=st.data(),
)
def test_the_least_is_brute_force_s(layers, budgets, data):
    sizes, costs = (list(x) for x in zip(*layers, strict=True))
    devices, n = [Device(b) for b in budgets], len(layers)
    held = [data.draw(st.sets(st.integers(0, n - 1))) for _ in devices]
    try:
        limit = optimal(sizes, costs, devices).cost
    except ValueError:
        return
    every = [
        moved_and_squares((*cuts, n), sizes, costs, held)
        for cuts in itertools.combinations(range(1, n), len(devices) - 1)
        if all(
            sum(sizes[a:b]) <= d.budget and sum(costs[a:b]) <= limit
            for a, b, d in zip((0, *cuts), (*cuts, n), devices, strict=True)
        )
    ]
    if not every:
        with pytest.raises(ValueError, match="least_moved"):
            least_moved(sizes, costs, devices, held, limit)
        return
    found = least_moved(sizes, costs, devices, held, limit)
    assert moved_and_squares(found.stops, sizes, costs, held) == min(every)
    assert found.cost <= limit * (1 + 1e-12)


def test_only_the_lost_layer_moves():
    """Sixteen layers on sixteen devices, the sixth is gone: a neighbour takes its layer."""
    ones, held = [1.0] * 16, [{i} for i in range(16) if i != 5]
    devices = [Device(100.0)] * 15
    found = least_moved(ones, ones, devices, held, optimal(ones, ones, devices).cost)
    moved = [(g, h) for g, h in zip(found.groups, held, strict=True) if set(g) != h]
    assert [set(g) - h for g, h in moved] == [{5}]


def test_fewer_layers_than_devices_names_both():
    with pytest.raises(ValueError, match="2 layers for 3 devices"):
        least_moved([1.0] * 2, [1.0] * 2, [Device(9.0)] * 3, [()] * 3, 9.0)
