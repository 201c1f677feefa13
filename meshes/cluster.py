"""Clusters by name: which GPUs, how many to a node, and what joins them."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from parallax.meshes.gpus import GPUS, Gpu

DEFAULT_CLUSTER = "h100_2x8"

# Left free for NCCL, cuBLAS and the allocator's fragmentation, which no compiled program counts.
USABLE_FRACTION = 0.92

_NODES_OF_EIGHT = re.compile(r"([a-z0-9_]+)_([1-9][0-9]*)x8")
_PART_OF_A_NODE = re.compile(r"([a-z0-9_]+)_1x([1-7])")


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs: NVLink through switches inside a node, one network card a GPU between.

    Positions count node by node: GPU `p` is in node `p // gpus_per_node`. They are the positions
    in `mesh.devices.flat` of a mesh over all devices.

    Args:
      name: what `cluster` finds it by.
      gpu: the kind of GPU.
      nodes: how many NVLink domains.
      gpus_per_node: GPUs in one NVLink domain.
      nic_bytes_per_s: network bandwidth a GPU, one direction.
      usable_fraction: share of a device's memory a program may take.
    """

    name: str
    gpu: Gpu
    nodes: int
    gpus_per_node: int
    nic_bytes_per_s: float
    usable_fraction: float = USABLE_FRACTION

    @property
    def devices(self) -> int:
        """How many GPUs there are."""
        return self.nodes * self.gpus_per_node

    @property
    def usable_bytes(self) -> int:
        """Memory of one device that a program may take: its size times `usable_fraction`."""
        return int(self.gpu.memory_bytes * self.usable_fraction)

    @property
    def topology(self) -> str:
        """`slices x hosts x GPUs a host`, as the CUDA compiler's topology string has it."""
        return f"1x{self.nodes}x{self.gpus_per_node}"

    def node_of(self, position: int) -> int:
        """The node that the GPU at `position` is in.

        Raises:
          ValueError: no such position.
        """
        if not 0 <= position < self.devices:
            raise ValueError(
                f"Cluster {self.name!r}: no GPU at position {position}. "
                f"Use 0 to {self.devices - 1}."
            )
        return position // self.gpus_per_node

    def link_between(self, sender: int, receiver: int) -> Literal["nvlink", "nic"]:
        """What a transfer between two GPUs crosses.

        Args:
          sender, receiver: two different positions.

        Raises:
          ValueError: no such position, or the same one twice.
        """
        if sender == receiver:
            raise ValueError(
                f"Cluster {self.name!r}: position {sender} given twice, expected two GPUs. "
                "A GPU needs no link to itself."
            )
        return "nvlink" if self.node_of(sender) == self.node_of(receiver) else "nic"

    def link_bytes_per_s(self, sender: int, receiver: int) -> float:
        """Peak bandwidth of `link_between`, one direction, bytes/s."""
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
    """The cluster of that name.

    Args:
      name: one of `CLUSTERS`, or `<gpu>_<nodes>x8` for any number of nodes, such as `h200_4x8`, or
        `<gpu>_1x<n>` for part of a node, such as `h100_1x4`.

    Raises:
      ValueError: no such cluster.
    """
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


def scaled(where: Cluster, devices: int) -> Cluster:
    """The same GPUs and links with another number of devices.

    Args:
      where: its nodes are kept whole, or one part of a node is used.
      devices: at most a node's, or whole nodes.

    Raises:
      ValueError: more than a node and no whole number of nodes.
    """
    if devices == where.devices:
        return where
    size = where.gpus_per_node
    if devices > size and devices % size:
        raise ValueError(
            f"{devices} devices are no whole number of nodes of {size}. Use up to {size}, or a "
            f"multiple of {size}."
        )
    nodes, per_node = max(1, devices // size), min(devices, size)
    return dataclasses.replace(
        where, name=f"{where.gpu.name}_{nodes}x{per_node}", nodes=nodes, gpus_per_node=per_node
    )
