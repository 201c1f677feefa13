"""The registry of strategies, built by name over a given mesh or to fill a cluster."""

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from parallax.meshes.cluster import DEFAULT_CLUSTER
from parallax.meshes.mesh import MeshSpec
from parallax.strategies.data_parallel import data_parallel
from parallax.strategies.expert_parallel import expert_parallel
from parallax.strategies.hybrid import hybrid
from parallax.strategies.layerwise import layerwise
from parallax.strategies.ring_sequence import ring_sequence
from parallax.strategies.sharded_weights import fsdp, hsdp
from parallax.strategies.slots import Share, Sizes, Slot, Ways, across_nodes, along
from parallax.strategies.tensor_pipeline import tensor_pipeline
from parallax.strategies.two_level import two_level
from parallax.strategies.ulysses import ulysses
from parallax.strategy import Strategy


class Named(NamedTuple):
    """One entry of the registry, as flags, lists, papers and `parallax plan` see it.

    Attributes:
      says: the description, in one line.
      axes: the mesh axes it may have; one that a mesh leaves out has size 1.
      over: (sizes of all its axes, name of the cluster) -> the strategy.
      fill: (devices per cluster, devices per node) -> sizes that fill the cluster.
      slots: the slots that `parallax plan` tries it for, and their sizes; {} for none.
      variant_of: the entry that this one is a variant of; maps of strategies show that one.
    """

    says: str
    axes: tuple[str, ...]
    over: Callable[[Sizes, str], Strategy]
    fill: Callable[[int, int], Sizes]
    slots: Mapping[Slot, Ways] = MappingProxyType({})
    variant_of: str = ""


def _by_node(devices: int, node_size: int, inner: str, outer: str) -> Sizes:
    inside = min(node_size, devices)
    return {outer: devices // inside, inner: inside}


def _square(devices: int) -> Sizes:
    slices = max(n for n in range(1, math.isqrt(devices) + 1) if devices % n == 0)
    return {"head_group": devices // slices, "head_slice": slices}


def _slices(share: Share) -> Iterator[Sizes]:
    """Yield head groups times slices whose slices hold whole pairs to rotate."""
    if share.all_ways or share.devices > share.kv_heads:
        for n in (2, 4, 8, 16):
            if share.devices % n == 0 and share.head_dim % (2 * n) == 0:
                yield {"head_group": share.devices // n, "head_slice": n}


def _whole_heads(share: Share) -> Iterator[Sizes]:
    if share.heads % share.devices == 0:
        yield {"seq": share.devices}


STRATEGIES: dict[str, Named] = {
    "tensor_pipeline": Named(
        "tensor parallelism inside a node, pipeline stages between nodes: the papers' baseline",
        ("stage", "tensor"),
        lambda n, cluster: tensor_pipeline(n["tensor"], n["stage"]),
        lambda devices, node: _by_node(devices, min(node, 8), "tensor", "stage"),
        {"layers": along("stage"), "heads": along("tensor")},
    ),
    "tensor_pipeline_colocated": Named(
        "the baseline with whole experts spread over the tensor axis (a reading of the paper)",
        ("stage", "tensor"),
        lambda n, cluster: tensor_pipeline(n["tensor"], n["stage"], experts="colocated"),
        lambda devices, node: _by_node(devices, min(node, 8), "tensor", "stage"),
        variant_of="tensor_pipeline",
    ),
    "ring_sequence": Named(
        "ring attention over the sequence: keys and values travel, weights are replicated",
        ("node", "seq"),
        lambda n, cluster: ring_sequence(n["node"] * n["seq"], nodes=n["node"]),
        lambda devices, node: {"seq": devices},
        {"sequence": along("seq")},
    ),
    "double_ring": Named(
        "a ring inside each node while every GPU swaps its keys with the next node once",
        ("node", "seq"),
        lambda n, cluster: ring_sequence(n["node"] * n["seq"], nodes=n["node"]).replace(
            name="double_ring"
        ),
        lambda devices, node: _by_node(devices, node, "seq", "node"),
        {"sequence": across_nodes("seq", "node")},
    ),
    "ulysses": Named(
        "the sequence over all devices, all-to-alls give attention whole sequences of few heads",
        ("seq",),
        lambda n, cluster: ulysses(n["seq"]),
        lambda devices, node: {"seq": devices},
        {"sequence": _whole_heads},
    ),
    "ulysses_ring": Named(
        "all-to-alls inside a node, keys and values around a ring of nodes",
        ("node", "seq"),
        lambda n, cluster: ulysses(n["node"] * n["seq"], nodes=n["node"]).replace(
            name="ulysses_ring"
        ),
        lambda devices, node: _by_node(devices, node, "seq", "node"),
    ),
    "two_level": Named(
        "head groups x slices of every head; the rest of a layer over both",
        ("head_group", "head_slice"),
        lambda n, cluster: two_level(n["head_group"], n["head_slice"], cluster=cluster),
        lambda devices, node: _square(devices),
        {"heads": _slices},
    ),
    "layerwise": Named(
        "contiguous layers, one group per device; microbatches travel from device to device",
        ("stage",),
        lambda n, cluster: layerwise(n["stage"]),
        lambda devices, node: {"stage": devices},
        {"layers": along("stage")},
    ),
    "expert_parallel": Named(
        "experts on devices of their own, the batch over the same devices, tokens travel",
        ("expert",),
        lambda n, cluster: expert_parallel(n["expert"]),
        lambda devices, node: {"expert": devices},
        {"experts": along("expert")},
    ),
    "expert_parallel_nodes": Named(
        "expert_parallel that sends a token once to each node, and only the rows in use",
        ("node", "expert"),
        lambda n, cluster: expert_parallel(
            n["node"] * n["expert"], nodes=n["node"], exchange="ragged"
        ).replace(name="expert_parallel_nodes"),
        lambda devices, node: _by_node(devices, node, "expert", "node"),
        {"experts": across_nodes("expert", "node")},
    ),
    "fsdp": Named(
        "the batch over all devices, weights and optimizer state sharded over them too",
        ("data",),
        lambda n, cluster: fsdp(n["data"]),
        lambda devices, node: {"data": devices},
        variant_of="data_parallel",
    ),
    "hsdp": Named(
        "fsdp inside each node, the nodes replicas that sum their gradients",
        ("replica", "data"),
        lambda n, cluster: hsdp(n["replica"], n["data"]),
        lambda devices, node: _by_node(devices, node, "data", "replica"),
        variant_of="data_parallel",
    ),
    "data_parallel": Named(
        "the batch over all devices, weights replicated: a forward pass sends nothing",
        ("data",),
        lambda n, cluster: data_parallel(n["data"]),
        lambda devices, node: {"data": devices},
        {"data": along("data")},
    ),
}


def build(
    name: str,
    mesh: MeshSpec | None = None,
    *,
    devices: int = 16,
    node_size: int = 8,
    cluster: str = DEFAULT_CLUSTER,
) -> Strategy:
    """Build a strategy by name.

    Args:
      name: a name in STRATEGIES, or several joined by "+" for a hybrid, which needs `mesh`.
      mesh: a mesh over the strategy's axes; None fills the cluster.
      devices: devices in the cluster.
      node_size: devices per node, which share a fast link; tensor groups and inner rings stay
        inside a node.
      cluster: the cluster whose rates decide where a strategy chooses by modelled time.

    Raises:
      ValueError: an unknown name, or a mesh with other axes.
    """
    names = check_name(name)
    known = tuple(dict.fromkeys(axis for part in names for axis in STRATEGIES[part].axes))
    if mesh is None and len(names) > 1:
        raise ValueError(
            f"strategy '{name}': a hybrid needs a mesh that says how the devices are divided. "
            f"Give one over {', '.join(known)}, such as "
            f"{','.join(f'{axis}=4' for axis in known[:2])}."
        )
    if mesh is None:
        return sized(name, STRATEGIES[name].fill(devices, node_size), cluster)
    for axis in mesh.names:
        if axis not in known:
            raise ValueError(
                f"mesh {mesh}: strategy '{name}' has no mesh axis '{axis}', only "
                f"{', '.join(known)}. Give these, or compare it in a run of its own."
            )
    made = [sized(part, dict(mesh.axes), cluster) for part in names]
    return made[0] if len(made) == 1 else hybrid(*made)


def check_name(name: str) -> list[str]:
    """Return the names in STRATEGIES that a name joins by "+". ValueError if one is unknown."""
    names = name.split("+")
    for part in names:
        if part not in STRATEGIES:
            raise ValueError(
                f"unknown strategy {part!r}. Use one of: {', '.join(STRATEGIES)}; several joined "
                "by '+'; or the path of a strategy file ending in .json."
            )
    return names


def sized(name: str, sizes: Sizes, cluster: str = DEFAULT_CLUSTER) -> Strategy:
    """Return a registered strategy whose mesh axes have these sizes, 1 where none is given."""
    named = STRATEGIES[name]
    return named.over({axis: sizes.get(axis, 1) for axis in named.axes}, cluster)
