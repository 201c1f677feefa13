"""Fixed routing: balanced or skewed, deterministic, and its plain summaries."""

import numpy as np
import pytest

from parallax.parallel.experts.fixed_routing import (
    expert_flop_utilisation,
    fixed_expert_ids,
    load_per_expert,
    max_over_mean,
    rows_between,
    rows_to_nodes,
    rows_to_other_devices,
    rows_to_other_nodes,
)


@pytest.mark.parametrize(("experts", "top_k"), [(16, 1), (16, 2), (8, 3), (6, 4)])
def test_uniform_is_even_in_every_block(experts, top_k):
    block = experts // np.gcd(experts, top_k)
    ids = fixed_expert_ids("uniform", 12 * block, experts, top_k, seed=1)
    assert ids.dtype == np.int32
    assert all(len(set(row)) == top_k for row in ids)
    for piece in ids.reshape(12, block, top_k):
        assert set(load_per_expert(piece, experts)) == {block * top_k // experts}
    assert (ids[:block] != ids[block : 2 * block]).any()  # and it is drawn
    assert max_over_mean(load_per_expert(ids, experts)) == 1.0


def test_skew_grows_with_sigma():
    loads = [
        max_over_mean(
            load_per_expert(fixed_expert_ids(f"lognormal:{s}", 20_000, 16, 2, seed=1), 16)
        )
        for s in (0, 0.5, 1)
    ]
    assert loads[0] == pytest.approx(1, abs=0.1)
    assert loads[0] < loads[1] < loads[2]
    ids = fixed_expert_ids("lognormal:1", 1000, 16, 3)
    assert all(len(set(row)) == 3 for row in ids)


def test_same_seed_same_choices_and_every_layer_its_own():
    for kind in ("uniform", "lognormal:0.5"):
        first = fixed_expert_ids(kind, 64, 8, 2, seed=1, layer=0)
        np.testing.assert_array_equal(first, fixed_expert_ids(kind, 64, 8, 2, seed=1, layer=0))
        assert (first != fixed_expert_ids(kind, 64, 8, 2, seed=1, layer=1)).any()
        assert (first != fixed_expert_ids(kind, 64, 8, 2, seed=2, layer=0)).any()


@pytest.mark.parametrize("kind", ["even", "lognormal", "lognormal:x", "lognormal:-1", "uniform:2"])
def test_kinds_that_do_not_exist(kind):
    with pytest.raises(ValueError, match="expected 'uniform' or 'lognormal:SIGMA'"):
        fixed_expert_ids(kind, 4, 4, 1)


def test_rows_between_devices_and_nodes_by_a_loop():
    experts, devices, nodes, tokens = 16, 8, 2, 64
    ids = fixed_expert_ids("lognormal:1", tokens, experts, 3, seed=4)
    ids[5, 1] = -1
    rows, once = np.zeros((devices, devices), int), np.zeros((devices, nodes), int)
    for t in range(tokens):
        home, needed = t // (tokens // devices), set()
        for expert in ids[t]:
            if expert >= 0:
                rows[home, expert // 2] += 1
                needed.add(expert // 8)
        for node in needed:
            once[home, node] += 1
    np.testing.assert_array_equal(rows_between(ids, experts, devices), rows)
    np.testing.assert_array_equal(rows_to_nodes(ids, experts, nodes, devices), once)
    away = [sum(rows[p, q] for q in range(devices) if q != p) for p in range(devices)]
    np.testing.assert_array_equal(rows_to_other_devices(ids, experts, devices), away)
    other = [once[p, 1 - p // 4] for p in range(devices)]
    np.testing.assert_array_equal(rows_to_other_nodes(ids, experts, nodes, devices), other)
    with pytest.raises(ValueError, match="5 devices do not divide"):
        rows_between(ids, experts, 5)


def test_utilisation_by_hand():
    assert expert_flop_utilisation(np.array([8, 8, 8, 8]), devices=2, tile=4) == 1
    # Tiles: 12 and 4 rows executed on two devices in lock-step, 9 + 4 of them needed.
    assert expert_flop_utilisation(np.array([9, 4]), devices=2, tile=4) == 13 / 24
    # Two calls, each waits for its own slowest.
    assert expert_flop_utilisation(np.array([[8, 0], [0, 8]]), devices=2, tile=4) == 0.5
