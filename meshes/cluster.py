"""Clusters by name: which GPUs, how many per node, and which interconnect."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from parallax.meshes.gpus import GPUS, Gpu
from parallax.meshes.networks import network as find_network
from parallax.meshes.sizes import parse_bytes

DEFAULT_CLUSTER = "h100_2x8"

# The rest is for NCCL, cuBLAS and the allocator's fragmentation, which no program counts.
USABLE_FRACTION = 0.92

_NODES_OF_EIGHT = re.compile(r"([a-z0-9_]+)_([1-9][0-9]*)x8")
_PART_OF_A_NODE = re.compile(r"([a-z0-9_]+)_1x([1-7])")


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs: switched NVLink inside a node, one network card per GPU between nodes.

    Positions count node by node: GPU `p` is in node `p // gpus_per_node`. They are the positions
    in `mesh.devices.flat` of a mesh over all devices.

    Args:
      name: the name that `cluster` looks up.
      gpu: the kind of GPU.
      nodes: how many NVLink domains.
      gpus_per_node: GPUs in one NVLink domain.
      nic_bytes_per_s: network bandwidth per GPU in one direction.
      usable_fraction: share of a device's memory that a program may take.
      network: name of the network between nodes, one of `networks.NETWORKS`; "" if it has none.

    Raises:
      ValueError: there is no such network.
    """

    name: str
    gpu: Gpu
    nodes: int
    gpus_per_node: int
    nic_bytes_per_s: float
    usable_fraction: float = USABLE_FRACTION
    network: str = ""

    def __post_init__(self):
        if self.network:
            find_network(self.network)

    @property
    def devices(self) -> int:
        """The number of GPUs."""
        return self.nodes * self.gpus_per_node

    @property
    def usable_bytes(self) -> int:
        """The bytes of one device that a program may take: its memory times `usable_fraction`."""
        return int(self.gpu.memory_bytes * self.usable_fraction)

    @property
    def topology(self) -> str:
        """The CUDA compiler's topology string: `slices x hosts x GPUs per host`."""
        return f"1x{self.nodes}x{self.gpus_per_node}"

    def node_of(self, position: int) -> int:
        """Return the node that the GPU at `position` is in.

        Raises:
          ValueError: there is no such position.
        """
        if not 0 <= position < self.devices:
            raise ValueError(
                f"Cluster {self.name!r}: no GPU at position {position}. "
                f"Use 0 to {self.devices - 1}."
            )
        return position // self.gpus_per_node

    def link_between(self, sender: int, receiver: int) -> Literal["nvlink", "nic"]:
        """Return the kind of link that a transfer between two GPUs crosses.

        Args:
          sender, receiver: two different positions.

        Raises:
          ValueError: there is no such position, or both are the same.
        """
        if sender == receiver:
            raise ValueError(
                f"Cluster {self.name!r}: position {sender} given twice, expected two GPUs. "
                "A GPU needs no link to itself."
            )
        return "nvlink" if self.node_of(sender) == self.node_of(receiver) else "nic"

    def link_bytes_per_s(self, sender: int, receiver: int) -> float:
        """Return the peak bandwidth of `link_between` in one direction, bytes/s."""
        if self.link_between(sender, receiver) == "nvlink":
            return self.gpu.nvlink_bytes_per_s
        return self.nic_bytes_per_s

    def __str__(self) -> str:
        return self.name


def _of_nodes(name: str, gpu: Gpu, nodes: int, gpus_per_node: int) -> Cluster:
    return Cluster(name, gpu, nodes, gpus_per_node, nic_bytes_per_s=gpu.nic_bytes_per_s)


CLUSTERS = {
    made.name: made
    for made in (
        _of_nodes("h100_2x8", GPUS["h100"], 2, 8),
        _of_nodes("h100_nvl16", GPUS["h100"], 1, 16),
        _of_nodes("h200_2x8", GPUS["h200"], 2, 8),
        _of_nodes("a100_2x8", GPUS["a100"], 2, 8),
        _of_nodes("b200_2x8", GPUS["b200"], 2, 8),
    )
}


def cluster(name: str = DEFAULT_CLUSTER) -> Cluster:
    """Return the cluster of a name.

    Args:
      name: one of `CLUSTERS`, or `<gpu>_<nodes>x8` for any number of nodes, such as `h200_4x8`, or
        `<gpu>_1x<n>` for part of a node, such as `h100_1x4`; each may end in `@<network>`, such as
        `h100_4x8@efa`, or `h100_4x8@efa:25GB` with a bandwidth of its own (see `on_network`).

    Raises:
      ValueError: there is no such cluster, or no such network.
    """
    hardware, at, network = name.partition("@")
    if at:
        return on_network(cluster(hardware), network)
    if name in CLUSTERS:
        return CLUSTERS[name]
    part = _PART_OF_A_NODE.fullmatch(name)
    if part is not None and part[1] in GPUS:
        return _of_nodes(name, GPUS[part[1]], 1, int(part[2]))
    match = _NODES_OF_EIGHT.fullmatch(name)
    if match is None or match[1] not in GPUS:
        raise ValueError(
            f"unknown cluster {name!r}. Use one of: {', '.join(CLUSTERS)}; or <gpu>_<nodes>x8 "
            f"with gpu from {', '.join(GPUS)}, for example h200_4x8."
        )
    return _of_nodes(name, GPUS[match[1]], int(match[2]), 8)


def on_network(base: Cluster, network: str | None) -> Cluster:
    """Return a cluster whose nodes are joined by a named network, with its cards' bandwidth.

    Args:
      base: the cluster.
      network: one of `networks.NETWORKS`, and after a colon the bandwidth per GPU in one direction
        if it is not the network's: "efa:25GB" is EFA with half the cards. Measured rates scale with
        it. None leaves the cluster as it is.

    Raises:
      ValueError: there is no such network, the cluster has another one, or the bandwidth is none.
    """
    if network is None:
        return base
    name, colon, rate = network.partition(":")
    found = find_network(name)
    bandwidth = float(parse_bytes(rate, "network")) if colon else found.nic_bytes_per_s
    if base.network:
        if (base.network, base.nic_bytes_per_s) == (name, bandwidth):
            return base
        raise ValueError(
            f"cluster {base.name} is on network {base.network!r}, not {network!r}. Name one."
        )
    return dataclasses.replace(
        base, name=f"{base.name}@{network}", network=name, nic_bytes_per_s=bandwidth
    )


def of_size(base: Cluster, devices: int) -> str:
    """Return the name of a cluster of the same GPUs with so many devices; "" if there is none."""
    for name in (*CLUSTERS, f"{base.gpu.name}_1x{devices}", f"{base.gpu.name}_{devices // 8}x8"):
        with contextlib.suppress(ValueError):
            found = cluster(name)
            if found.devices == devices and found.gpu == base.gpu:
                return name
    return ""


def scaled(base: Cluster, devices: int) -> Cluster:
    """Return a cluster of the same GPUs and links with another number of devices.

    Args:
      cluster: the cluster whose nodes are kept whole, or of which a part of one node is used.
      devices: at most those of one node, or those of whole nodes.

    Raises:
      ValueError: more devices than one node has, and not a whole number of nodes.
    """
    if devices == base.devices:
        return base
    size = base.gpus_per_node
    if devices > size and devices % size:
        raise ValueError(
            f"{devices} devices are not a whole number of nodes of {size}. Use up to {size}, or a "
            f"multiple of {size}."
        )
    nodes, per_node = max(1, devices // size), min(devices, size)
    _, at, network = base.name.partition("@")
    name = f"{base.gpu.name}_{nodes}x{per_node}{at}{network}"
    return dataclasses.replace(base, name=name, nodes=nodes, gpus_per_node=per_node)
