"""A cluster that names its network has that network's rates; one that does not has generic ones."""

import dataclasses

import pytest

from parallax.bounds import wire_bytes
from parallax.cost import Cost, error_bar, estimate_cost, rates_for, rates_of
from parallax.cost.collectives import exchange_seconds
from parallax.cost.measurements import collectives
from parallax.cost.networks import _SHIPPED, NetworkRates, network_rates
from parallax.cost.rates import BETWEEN_NODES
from parallax.hlo.collectives import Collective
from parallax.hlo.execution_trace import ExecutionTrace, Send
from parallax.meshes.cluster import cluster
from parallax.meshes.networks import NETWORKS

EFA = rates_for(cluster("h100_2x8@efa"))
# Who measured which network; of the slow one, also with rings forced, which nothing is fitted to.
SOURCES = {
    "efa": ("aws_nccl_p5", "aws_hyperpod_p5"), "efa_400": ("aws_nccl_p4de",),
    "infiniband_ndr": ("nccl_tests_k8s_h100",), "infiniband_ndr_slow": ("nccl_tests_290",),
    "roce": ("nccl_tests_gke_a4",),
}  # fmt: skip


def apart(rates, rows):
    modelled = (
        exchange_seconds(r.kind, r.bytes, r.devices // r.nodes, r.nodes, rates) for r in rows
    )
    errors = [abs(m / r.seconds - 1) for m, r in zip(modelled, rows, strict=True)]
    return sum(errors) / len(errors)


def test_every_network_has_rates_and_every_file_a_network():
    assert set(SOURCES) == set(NETWORKS) == {path.stem for path in _SHIPPED.glob("*.json")}
    for name in NETWORKS:
        found = network_rates(name)
        assert found.name == name
        assert found.source
        assert found.spread.low < 1 < found.spread.high
        assert all(r.bytes_per_s <= NETWORKS[name].nic_bytes_per_s for r in found.links.values())


@pytest.mark.parametrize("name", SOURCES)
def test_two_nodes_of_a_named_network_are_as_they_were_measured(name):
    rows = [r for r in collectives() if r.source in SOURCES[name] and r.nodes == 2]
    assert apart(rates_for(cluster(f"{rows[0].gpu}_2x8@{name}")), rows) < 0.15


def test_more_nodes_of_efa_too():
    for kind, most in (("all-reduce", 0.16), ("all-gather", 0.1), ("all-to-all", 0.1)):
        rows = [r for r in collectives() if r.source == "aws_hyperpod_p5" and r.kind == kind]
        assert max(r.nodes for r in rows) == 32
        assert apart(EFA, rows) < most


def test_without_a_name_the_rates_are_generic_and_nothing_measured_them():
    assert rates_for(cluster("h100_2x8")) is rates_of("h100")
    assert not rates_of("h100").measured_between_nodes
    assert EFA.measured_between_nodes
    rows = [r for r in collectives() if r.source in SOURCES["infiniband_ndr_slow"] and r.nodes == 2]
    assert apart(rates_of("h100"), rows) > 0.3  # cards alone do not tell
    inside = {k: v for k, v in EFA.links.items() if "network" not in k}
    assert inside.items() <= rates_of("h100").links.items()


def test_what_was_calibrated_between_nodes_stays():
    measured = dataclasses.replace(EFA, links={**EFA.links, "network": EFA.links["p2p"]})
    assert rates_for(cluster("h100_4x8@roce"), measured) is measured


def test_cards_of_another_bandwidth_scale_its_rates():
    named = cluster("h100_2x8@efa")
    half = rates_for(dataclasses.replace(named, nic_bytes_per_s=named.nic_bytes_per_s / 2))
    for kind, link in BETWEEN_NODES.items():
        assert half.links[link].bytes_per_s == EFA.links[link].bytes_per_s / 2
        assert half.links[link].start_s == EFA.links[link].start_s
        assert exchange_seconds(kind, 1e9, 8, 4, half) > 1.5 * exchange_seconds(
            kind, 1e9, 8, 4, EFA
        )


def test_two_nodes_of_trees_send_a_sum_once_and_rings_twice():
    size = 1e11
    for name, sent in (
        ("efa_400", size / 8),
        ("infiniband_ndr", wire_bytes("all-reduce", 16, size) / 8),
    ):
        rates = rates_for(cluster(f"h100_2x8@{name}"))
        card = rates.network("all-reduce").bytes_per_s
        assert exchange_seconds("all-reduce", size, 8, 2, rates) == pytest.approx(
            sent / card, rel=1e-2
        )


def test_a_prediction_takes_the_rates_and_the_bar_of_the_network():
    groups, size = (tuple(range(16)),), 2**28
    sent = Collective(
        "all-reduce", ("data",), 16, size, wire_bytes("all-reduce", 16, size), 1, "bf16", "",
        groups=groups,
    )  # fmt: skip
    work = ExecutionTrace("entry", {"entry": (Send("sum", sent),)}, 16)
    for name, source in (("efa", "aws_nccl_p5"), ("infiniband_ndr_slow", "nccl_tests_290")):
        where = cluster(f"h100_2x8@{name}")
        rates = rates_for(where)
        (row,) = [r for r in collectives() if (r.source, r.nodes, r.bytes) == (source, 2, size)]
        cost = estimate_cost(work, where, rates)
        assert cost.seconds == pytest.approx(row.seconds, rel=0.15)
        low, high = error_bar(cost, rates)
        spread = network_rates(name).spread
        assert (low, high) == pytest.approx((spread.low * cost.seconds, spread.high * cost.seconds))


def test_a_bar_is_of_the_network_as_far_as_time_is_between_nodes():
    cost = Cost(3.0, {"exposed communication": 3.0}, communication_s=4.0, network_s=1.0)
    inside, network = EFA.spreads["communication"], EFA.spreads["network"]
    low, high = error_bar(cost, EFA)
    assert low == pytest.approx(2.25 * inside.low + 0.75 * network.low)
    assert high == pytest.approx(2.25 * inside.high + 0.75 * network.high)


def test_rates_of_an_unknown_network_or_without_a_kind_are_refused():
    found = network_rates("efa")
    with pytest.raises(ValueError, match=r"unknown network 'x'. Use one of: efa, efa_400"):
        dataclasses.replace(found, name="x")
    some = {k: v for k, v in found.links.items() if k != "network all-gather"}
    with pytest.raises(ValueError, match="network 'efa': links are"):
        NetworkRates("efa", some, found.spread, "here", "today")
    with pytest.raises(ValueError, match="unknown network"):
        network_rates("../h100")


def test_rates_scale_with_a_bandwidth_of_its_own():
    half = rates_for(cluster("h100_2x8@efa:25GB"))
    for name in ("network", "network all-gather"):
        assert half.links[name].bytes_per_s == pytest.approx(EFA.links[name].bytes_per_s / 2)
        assert half.links[name].start_s == EFA.links[name].start_s
