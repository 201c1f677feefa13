"""The networks between nodes that have a name, because somebody measured collectives over them.

The rates that were measured are in `cost.networks`. Another network has no name: its cluster says
"", and time between its nodes is an estimate from the card's bandwidth alone.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """A network between nodes of eight GPUs.

    Args:
      name: the name that clusters use.
      what: the hardware, in words.
      nic_bytes_per_s: bandwidth per GPU in one direction, the card's peak.
    """

    name: str
    what: str
    nic_bytes_per_s: float


NETWORKS = {
    network.name: network
    for network in (
        Network("efa", "AWS EFA, 3200 Gb/s a node (p5.48xlarge)", 50e9),
        Network("efa_400", "AWS EFA, 400 Gb/s a node (p4de.24xlarge)", 6.25e9),
        Network("infiniband_ndr", "NDR InfiniBand, 400 Gb/s a GPU", 50e9),
        Network(
            "infiniband_ndr_slow",
            "NDR InfiniBand whose all-reduce reaches 40 % of that (a setup its owner doubts)",
            50e9,
        ),
        Network("roce", "RoCE, 400 Gb/s a GPU (GKE A4 High)", 50e9),
    )
}


def network(name: str) -> Network:
    """Return the network of a name; ValueError, listing those known, if there is none."""
    if name not in NETWORKS:
        raise ValueError(
            f"unknown network {name!r}. Use one of: {', '.join(NETWORKS)}; or name none, and time "
            "between nodes is not validated."
        )
    return NETWORKS[name]
