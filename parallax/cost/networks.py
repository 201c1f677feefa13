"""The rates of collectives over named networks, fitted to published measurements of whole nodes.

A cluster that names its network gets them in place of the generic ones: `rates_for`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parallax.codec import FileFormat
from parallax.cost.rates import BETWEEN_NODES, LinkRates, Rates, Spread, rates_of
from parallax.meshes.cluster import Cluster
from parallax.meshes.networks import NETWORKS
from parallax.meshes.networks import network as find_network

_SHIPPED = Path(__file__).parent / "shipped" / "networks"


@dataclass(frozen=True)
class NetworkRates:
    """The constants of collectives between nodes of eight GPUs on one network.

    Attributes:
      name: name in `meshes.networks`.
      links: "network" (a message) and the kinds of `BETWEEN_NODES` -> rates, of one card.
      spread: the 80 % interval of measured / modelled, over rows that were not fitted.
      source: what was measured, and what follows from it.
      version: version of the fit: a date.
    """

    name: str
    links: Mapping[str, LinkRates]
    spread: Spread
    source: str
    version: str

    def __post_init__(self):
        find_network(self.name)
        if set(self.links) != {"network", *BETWEEN_NODES.values()}:
            raise ValueError(f"network {self.name!r}: links are {', '.join(sorted(self.links))}.")

    def scaled(self, share: float) -> dict[str, LinkRates]:
        """Return the links of cards with another bandwidth, `share` times the network's own."""
        return {
            kind: dataclasses.replace(link, bytes_per_s=link.bytes_per_s * share)
            for kind, link in self.links.items()
        }


FILE = FileFormat(NetworkRates, "network's rates", "network_version", 1, "Fit them again.")


@functools.lru_cache(maxsize=16)
def network_rates(name: str) -> NetworkRates:
    """Load the constants shipped for a network; ValueError, listing those known, if it is none."""
    return FILE.load(_SHIPPED / f"{find_network(name).name}.json")


def rates_for(cluster: Cluster, rates: Rates | None = None) -> Rates:
    """Return the constants of a cluster: of its GPU, and between nodes of its network if named.

    Args:
      cluster: the cluster.
      rates: constants of its GPU; None takes those shipped. If collectives between nodes were
        measured for them, by `parallax calibrate --distributed`, these stay.

    Raises:
      ValueError: no constants are shipped for the GPU.
    """
    rates = rates or rates_of(cluster.gpu.name)
    if not cluster.network or rates.measured_between_nodes:
        return rates
    found = network_rates(cluster.network)
    share = cluster.nic_bytes_per_s / NETWORKS[cluster.network].nic_bytes_per_s
    return dataclasses.replace(
        rates,
        links={**rates.links, **found.scaled(share)},
        spreads={**rates.spreads, "network": found.spread},
        sources={**rates.sources, "network": found.source},
    )
