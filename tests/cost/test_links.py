"""Which link a collective loads, by hand on two nodes of eight."""

import pytest

from parallax.cost.links import link_bytes, link_seconds
from parallax.hlo.ledger import Collective
from parallax.meshes.cluster import cluster

TWO_NODES = cluster("h100_2x8")
ONE_DOMAIN = cluster("h100_nvl16")
S = 1600


def make(kind, wire, pairs=(), groups=()):
    size = len(groups[0]) if groups else 16
    return Collective(kind, ("seq",), size, S, wire, 3, "f16", "", pairs=pairs, groups=groups)


RING = tuple((i, (i + 1) % 16) for i in range(16))
ALL = (tuple(range(16)),)
NODES = (tuple(range(8)), tuple(range(8, 16)))
ACROSS = tuple((i, i + 8) for i in range(8))

CASES = {
    "ring over two nodes": (make("collective-permute", S, RING), {"nvlink": S, "nic": S}),
    "ring in a node": (make("collective-permute", S, ((0, 1), (1, 0))), {"nvlink": S}),
    "handoff between nodes": (make("collective-permute", S, ACROSS), {"nic": S}),
    "all-reduce in nodes": (make("all-reduce", 2800, groups=NODES), {"nvlink": 2800}),
    "all-reduce of pairs": (make("all-reduce", S, groups=ACROSS), {"nic": S}),
    "all-reduce over all": (make("all-reduce", 3000, groups=ALL), {"nic": 200, "nvlink": 2800}),
    "all-gather over all": (make("all-gather", 1500, groups=ALL), {"nic": 100, "nvlink": 1400}),
    "all-to-all over all": (make("all-to-all", 1500, groups=ALL), {"nic": 800, "nvlink": 700}),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes_by_link(name):
    collective, expected = CASES[name]
    assert link_bytes(collective, TWO_NODES) == pytest.approx(expected)


def test_one_domain_has_no_network_and_seconds_are_the_slowest_links():
    ring = CASES["ring over two nodes"][0]
    assert link_bytes(ring, ONE_DOMAIN) == {"nvlink": S}
    assert link_seconds(ring, TWO_NODES) == S / 50e9
    assert link_seconds(ring, ONE_DOMAIN) == S / 450e9
