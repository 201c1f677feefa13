"""Descriptions of a cluster's devices, which the CUDA compiler takes in place of real ones.

This needs the `aot` extra, and a process in which JAX has not yet started on another platform
(`JAX_PLATFORMS=cpu` and `JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1` in its environment).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallax.meshes.cluster import Cluster

if TYPE_CHECKING:
    import jax


def topology_devices(cluster: Cluster, memory_bytes: int | None = None) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """Return devices to lower and compile for, in position order; nothing can run on them.

    Args:
      cluster: the cluster to describe.
      memory_bytes: device memory that the compiler plans for; None takes the GPU's own.
    """
    from jax.experimental import topologies

    described = topologies.get_topology_desc(
        platform="cuda",
        topology_name=cluster.gpu.name,
        target_config=cluster.gpu.target_config(memory_bytes),
        topology=cluster.topology,
    )
    devices = list(described.devices)
    assert len(devices) == cluster.devices, (len(devices), cluster)
    return devices
