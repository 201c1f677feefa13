"""The links that a collective crosses, the bytes it sends over them, and its least time."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable

from parallax.hlo.collectives import Collective
from parallax.meshes.cluster import Cluster

# Multiples of the full array S: n nodes must exchange at least (n - 1) / n of them.
_PARTS = {"all-reduce": 2.0, "all-gather": 1.0, "reduce-scatter": 1.0}


def devices_per_node(collective: Collective, cluster: Cluster) -> tuple[int, ...]:
    """Return the devices per node of the group that spans the most nodes."""
    return _per_node(collective.groups, cluster.gpus_per_node)


@functools.lru_cache(maxsize=4096)
def pair_links(pairs: tuple[tuple[int, int], ...], gpus_per_node: int) -> tuple[str, ...]:
    """Return the kinds of links that a permute's pairs cross, "nvlink" and "nic"."""
    crossing = {a // gpus_per_node != b // gpus_per_node for a, b in pairs if a != b}
    return tuple("nic" if c else "nvlink" for c in sorted(crossing))


@functools.lru_cache(maxsize=4096)
def _per_node(groups: tuple[tuple[int, ...], ...], gpus_per_node: int) -> tuple[int, ...]:
    best: tuple[int, ...] = ()
    for group in groups:
        counts = Counter(device // gpus_per_node for device in group)
        if len(counts) > len(best):
            best = tuple(counts.values())
    return best


def crosses_nodes(collective: Collective, cluster: Cluster) -> bool:
    """Whether a collective sends anything between nodes."""
    return "nic" in link_bytes(collective, cluster)


def link_bytes(collective: Collective, cluster: Cluster) -> dict[str, float]:
    """Compute the bytes that one execution sends over the busiest device's NVLink and network card.

    For groups within a node and for permutes these are the ledger's bytes. For groups over several
    nodes they are the least that a hierarchical algorithm sends: each card carries an equal share.
    """
    size = collective.wire_bytes
    if collective.kind == "collective-permute":
        return dict.fromkeys(pair_links(collective.pairs, cluster.gpus_per_node), size)
    per_node = devices_per_node(collective, cluster)
    nodes, inside = len(per_node), min(per_node, default=1)
    if nodes <= 1:
        return {"nvlink": size}
    n, payload = collective.group_size, collective.payload_bytes
    if collective.ragged:  # its bytes are those of rows for other devices, equally many for each
        others = n - 1
        return {"nic": size * (n - inside) / others, "nvlink": size * (inside - 1) / others}
    if collective.kind == "all-to-all":
        return {"nic": payload * (n - inside) / n, "nvlink": payload * (inside - 1) / n}
    factor = _PARTS[collective.kind] * payload
    out = {"nic": factor * (nodes - 1) / nodes / inside}
    if inside > 1:
        out["nvlink"] = factor * (inside - 1) / inside
    return out


def least_link_bytes(collective: Collective, cluster: Cluster) -> dict[str, float]:
    """Compute a lower bound of `link_bytes`: a switch that sums moves every array once each way."""
    sent = link_bytes(collective, cluster)
    if collective.kind != "all-reduce":
        return sent
    once = {"nvlink": float(collective.payload_bytes)}
    once["nic"] = once["nvlink"] / min(devices_per_node(collective, cluster), default=1)
    return {link: min(size, once[link]) for link, size in sent.items()}


def all_link_bytes(
    collectives: Iterable[Collective],
    cluster: Cluster,
    of: Callable[[Collective, Cluster], dict[str, float]] = link_bytes,
) -> dict[str, float]:
    """Sum `link_bytes` (or another account, `of`) over all executions in a program."""
    total = {"nvlink": 0.0, "nic": 0.0}
    for collective in collectives:
        for link, size in of(collective, cluster).items():
            total[link] += size * collective.count
    return total


def link_seconds(collective: Collective, cluster: Cluster) -> float:
    """Compute the least seconds of one execution: the slowest link's time at peak rates."""
    rates = {"nvlink": cluster.gpu.nvlink_bytes_per_s, "nic": cluster.nic_bytes_per_s}
    return max((b / rates[k] for k, b in link_bytes(collective, cluster).items()), default=0.0)
