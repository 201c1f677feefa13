"""The partitioning systems: one file and one constructor each, for any number of devices."""

import math
from collections.abc import Callable
from typing import Any

from parallax.meshes.cluster import DEFAULT_CLUSTER
from parallax.meshes.mesh import MeshSpec
from parallax.strategies.data_parallel import data_parallel
from parallax.strategies.ring_sequence import ring_sequence
from parallax.strategies.tensor_pipeline import tensor_pipeline
from parallax.strategies.two_level import two_level
from parallax.strategies.ulysses import ulysses
from parallax.strategy import Strategy

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "tensor_pipeline": tensor_pipeline,
    "ring_sequence": ring_sequence,
    "two_level": two_level,
    "ulysses": ulysses,
    "data_parallel": data_parallel,
}

# Mesh axis -> the constructor's argument for its size.
_ARGUMENTS = {
    "tensor_pipeline": {"stage": "stage", "tensor": "tensor"},
    "ring_sequence": {"node": "nodes", "seq": "devices"},
    "two_level": {"head_group": "groups", "head_slice": "slices"},
    "ulysses": {"seq": "devices"},
    "data_parallel": {"data": "devices"},
}


def build(
    name: str,
    mesh: MeshSpec | None = None,
    *,
    devices: int = 16,
    node_size: int = 8,
    cluster: str = DEFAULT_CLUSTER,
) -> Strategy:
    """A strategy by name, over a given mesh or filling a cluster.

    Args:
      name: of STRATEGIES.
      mesh: its axes must be the strategy's; None fills the cluster.
      devices: of the cluster.
      node_size: devices that share a fast link; tensor groups stay inside.
      cluster: whose rates decide what a strategy leaves open.

    Raises:
      ValueError: an unknown name, or a mesh with other axes.
    """
    if name not in STRATEGIES:
        raise ValueError(
            f"unknown strategy {name!r}. Use one of: {', '.join(STRATEGIES)}; or the path of a "
            "strategy file ending in .json."
        )
    arguments = _ARGUMENTS[name]
    if mesh is not None:
        foreign = [axis for axis in mesh.names if axis not in arguments]
        if foreign:
            raise ValueError(
                f"mesh {mesh}: strategy '{name}' has no mesh axis '{foreign[0]}', only "
                f"{', '.join(arguments)}. Give these, or compare it in a run of its own."
            )
        sizes: dict[str, Any] = dict.fromkeys(arguments.values(), 1)
        sizes |= {arguments[axis]: size for axis, size in mesh.axes}
        if name == "ring_sequence":
            sizes["devices"] *= sizes["nodes"]
        if name == "two_level":
            sizes["cluster"] = cluster
        return STRATEGIES[name](**sizes)
    if name == "tensor_pipeline":
        tensor = min(node_size, 8, devices)
        return tensor_pipeline(tensor, devices // tensor)
    if name == "two_level":
        slices = max(n for n in range(1, math.isqrt(devices) + 1) if devices % n == 0)
        return two_level(devices // slices, slices, cluster=cluster)
    return STRATEGIES[name](devices)


__all__ = [
    "STRATEGIES",
    "build",
    "data_parallel",
    "ring_sequence",
    "tensor_pipeline",
    "two_level",
    "ulysses",
]
