"""Descriptions of a cluster's devices, which the CUDA compiler takes in place of real ones.

This needs the `aot` extra. It works in any process, also one where JAX already runs elsewhere.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING

from parallax.meshes.cluster import Cluster

if TYPE_CHECKING:
    import jax

# Without it the plugin looks for libraries that only a machine with a GPU needs.
_NO_GPU = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"


def topology_devices(cluster: Cluster, memory_bytes: int | None = None) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """Return devices to lower and compile for, in position order; nothing can run on them.

    Args:
      cluster: the cluster to describe.
      memory_bytes: device memory that the compiler plans for; None takes the GPU's own.
    """
    os.environ.setdefault(_NO_GPU, "1")
    try:
        devices = _described(cluster, memory_bytes)
    except NotImplementedError:
        # JAX looked for plugins before this variable was set, and found one that it left out.
        _register_plugin()
        devices = _described(cluster, memory_bytes)
    assert len(devices) == cluster.devices, (len(devices), cluster)
    return devices


def _described(cluster: Cluster, memory_bytes: int | None) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    from jax.experimental import topologies

    described = topologies.get_topology_desc(
        platform="cuda",
        topology_name=cluster.gpu.name,
        target_config=cluster.gpu.target_config(memory_bytes),
        topology=cluster.topology,
    )
    return list(described.devices)


def _register_plugin() -> None:
    for version in (12, 13):
        name = f"jax_plugins.xla_cuda{version}"
        if importlib.util.find_spec("jax_plugins") and importlib.util.find_spec(name):
            importlib.import_module(name).initialize()
            return
