"""The fit of links finds the latency and bandwidth behind made-up times, also between nodes."""

import dataclasses

import numpy as np
import pytest

from parallax.commands.calibrate_links import fit_links
from parallax.cost.fitting import predicted_collective
from parallax.cost.measurements import KINDS, MeasuredCollective
from parallax.cost.rates import LinkRates, Rates, rates_of
from parallax.lenses.benchmarking import LINK_BYTES, Measured

NODES, INSIDE = 4, 8
# Seconds per message and bytes per second of a device, all unlike what is shipped (28.9 us, 47e9).
BETWEEN = {
    "network": LinkRates(9e-6, 24e9),
    "network all-reduce": LinkRates(15e-6, 21e9),
    "network all-gather": LinkRates(11e-6, 90e9),
    "network reduce-scatter": LinkRates(70e-6, 33e9),
    "network all-to-all": LinkRates(40e-6, 5e9),
}
SHIPPED = rates_of("h200")
TRUE = dataclasses.replace(SHIPPED, links={**SHIPPED.links, **BETWEEN})


def rows(nodes, devices, kinds=KINDS, noise=0.0, rates=TRUE):
    """What groups of so many devices over so many nodes would have measured."""
    rng = np.random.default_rng(0)
    blank = (
        MeasuredCollective("here", "h200", nodes, devices, kind, size, 1.0)
        for kind in kinds
        for size in LINK_BYTES
    )
    return tuple(
        dataclasses.replace(r, seconds=predicted_collective(rates, r) * rng.lognormal(0, noise))
        for r in blank
    )


def measured(*collectives):
    return Measured("NVIDIA H200", 32, (), collectives, (), 4e12, (), 1e-6, None, None, NODES)


def fit(*collectives):
    held_out = {}
    return fit_links(SHIPPED, measured(*collectives), held_out), held_out


def test_latency_and_bandwidth_between_nodes_are_found():
    found, held_out = fit(*rows(NODES, NODES))
    for name, true in BETWEEN.items():
        assert found.links[name].start_s == pytest.approx(true.start_s, rel=1e-3)
        assert found.links[name].bytes_per_s == pytest.approx(true.bytes_per_s, rel=1e-3)
    assert set(held_out) == {f"{kind} between nodes" for kind in KINDS}
    assert all(count and p90 < 1e-3 for count, _, p90 in held_out.values())


def test_noise_of_three_percent_moves_them_by_little():
    found, held_out = fit(*rows(NODES, NODES, noise=0.03))
    for name, true in BETWEEN.items():
        assert found.links[name].start_s == pytest.approx(true.start_s, rel=0.1)
        assert found.links[name].bytes_per_s == pytest.approx(true.bytes_per_s, rel=0.1)
    assert all(median < 0.1 for _, median, _ in held_out.values())


@pytest.mark.parametrize("nodes", [2, 24, 28])
def test_every_number_of_nodes_is_fitted_and_has_sizes_held_out(nodes):
    """By a hash of the shape, no all-gather over 24 nodes would be fitted."""
    found, held_out = fit(*rows(nodes, nodes, ["all-gather"]))
    assert found.links["network all-gather"].start_s == pytest.approx(11e-6, rel=1e-3)
    assert held_out["all-gather between nodes"][0] == 3


def test_two_nodes_of_one_device_are_between_nodes():
    found, held_out = fit(*rows(2, 2, ["all-reduce"]))
    assert found.links["network all-reduce"].bytes_per_s == pytest.approx(21e9, rel=1e-3)
    assert list(held_out) == ["all-reduce between nodes"]


def test_inside_and_between_are_apart_and_the_whole_tests_both():
    kinds, whole = ("all-reduce", "p2p"), rows(NODES, NODES * INSIDE, ["all-reduce"])
    parts = (*rows(1, INSIDE, kinds), *rows(NODES, NODES, kinds))
    found, held_out = fit(*parts, *whole)
    names = [f"{kind} {part} nodes" for part in ("inside", "between") for kind in kinds]
    assert set(held_out) == {*names, "all-reduce over all devices, not fitted"}
    assert all(count and p90 < 0.01 for count, _, p90 in held_out.values())
    assert held_out["all-reduce over all devices, not fitted"][0] == len(LINK_BYTES)
    # A whole that is slower than its parts shows, and moves no constant.
    slow = [dataclasses.replace(r, seconds=2 * r.seconds) for r in whole]
    again, worse = fit(*parts, *slow)
    assert again.links == found.links
    assert worse["all-reduce over all devices, not fitted"][1] == pytest.approx(0.5, abs=0.01)
    assert again.spreads["communication"].high > found.spreads["communication"].high


def test_what_was_not_measured_stays_and_says_so():
    nothing, held_out = fit()
    assert nothing.links == SHIPPED.links
    assert nothing.spreads == SHIPPED.spreads
    assert held_out == {}
    assert nothing.sources["communication"].startswith("not measured here, shipped: each GPU")
    assert nothing.sources["network"] == f"not measured here, shipped: {SHIPPED.sources['network']}"
    again = fit_links(nothing, measured(), {})
    assert again.sources == nothing.sources

    found, _ = fit(*rows(1, INSIDE, ["all-gather"]), *rows(NODES, NODES, ["all-reduce"]))
    changed = {name for name, link in found.links.items() if link != SHIPPED.links.get(name)}
    assert changed == {"all-gather", "network all-reduce"}
    inside, network = found.sources["communication"], found.sources["network"]
    assert "NVIDIA H200, 8 devices per group: all-gather; all-reduce, reduce-scatter" in inside
    assert "p2p not measured here, shipped: each GPU" in inside
    assert "between 4 nodes, 4 devices per group: all-reduce; all-gather" in network
    assert "p2p not measured here, shipped: 47 GB/s" in network


def test_the_file_holds_them(tmp_path):
    found, _ = fit(*rows(NODES, NODES))
    found.save(tmp_path / "rates.json")
    assert Rates.load(tmp_path / "rates.json") == found
    assert found.measured_between_nodes
    assert not SHIPPED.measured_between_nodes
    assert not fit(*rows(NODES, NODES, ["all-reduce"]))[0].measured_between_nodes


def test_a_kind_without_its_own_takes_a_messages():
    assert SHIPPED.network("all-to-all") == SHIPPED.links["network"]
    assert TRUE.network("all-to-all") == BETWEEN["network all-to-all"]
    assert TRUE.network("p2p") == BETWEEN["network"]
